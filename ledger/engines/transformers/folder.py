"""Reading a Hugging Face folder: config.json, *.safetensors, a tokenizer, and pooling files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from weightledger.ledger.engines.transformers.encoder import MEAN, MODES, Pooling
from weightledger.ledger.errors import InvalidRequest

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Folder:
    """What a folder holds; `max_tokens` is None where the folder sets no limit of its own."""

    model: torch.nn.Module
    tokenizer: Any
    pooling: Pooling = MEAN
    max_tokens: int | None = None


def read(path: Path) -> Folder:
    """Load everything; InvalidRequest says what is missing or not supported."""
    if not (path / "config.json").is_file():
        raise _refused(path, "has no config.json; expected a Hugging Face model folder")
    if not any(path.glob("*.safetensors")):
        raise _refused(path, "has no *.safetensors file; pickled weights (*.bin) are not read")
    try:
        config = AutoConfig.from_pretrained(path, **_LOCAL)
        tokenizer = AutoTokenizer.from_pretrained(path, **_LOCAL)
        model = _model(path, config)
    except InvalidRequest:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise _refused(path, f"cannot be loaded: {error}") from error
    if model.can_generate():
        return Folder(model, tokenizer)
    return Folder(model, tokenizer, _pooling(path), _max_tokens(path))


def _model(path: Path, config: Any) -> Any:
    architectures = set(config.architectures or ())
    causal = architectures & _names(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    encoder = architectures & (
        _names(MODEL_MAPPING_NAMES) | _names(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    )
    if (not causal and not encoder) or config.is_encoder_decoder:
        raise _refused(
            path,
            f"holds {', '.join(sorted(architectures)) or 'no named architecture'}; expected a "
            "causal language model (…ForCausalLM) or a text encoder (such as BertModel). Serve "
            "other models with --model module:factory",
        )
    auto = AutoModelForCausalLM if causal else AutoModel
    model, report = auto.from_pretrained(
        path,
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        # Reported below, by name.
        ignore_mismatched_sizes=True,
        **_LOCAL,
    )
    # transformers fills these with random numbers, other ones at each start.
    absent = sorted(report["missing_keys"])
    absent += [f"{name} of the right shape" for name, *_ in sorted(report["mismatched_keys"])]
    if absent:
        more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        raise _refused(
            path, f"lacks weights that the model needs: {', '.join(absent[:_SHOWN])}{more}"
        )
    return model.eval()


def _pooling(path: Path) -> Pooling:
    """What sentence-transformers' modules.json says comes after the model."""
    if not (path / "modules.json").is_file():
        return MEAN
    mode, normalize = MEAN.mode, False
    for module in _json(path / "modules.json"):
        kind = str(module["type"]).rpartition(".")[2]
        if kind == "Pooling":
            mode = _mode(path, _json(path / module["path"] / "config.json"))
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise _refused(
                path, f"has a module {kind} in modules.json; Pooling and Normalize are supported"
            )
    return Pooling(mode, normalize)


def _mode(path: Path, config: dict[str, Any]) -> str:
    named = config.get("pooling_mode")
    # Files of before version 6 have a switch for each mode.
    switched = [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, on in config.items()
        if key.startswith("pooling_mode_") and on is True
    ]
    chosen = [named] if isinstance(named, str) else switched
    if len(chosen) != 1 or chosen[0] not in MODES:
        raise _refused(
            path,
            f"pools by {' and '.join(map(str, chosen)) or 'nothing'}; expected one of "
            f"{', '.join(MODES)}",
        )
    return str(chosen[0])


def _max_tokens(path: Path) -> int | None:
    file = path / "sentence_bert_config.json"
    limit = _json(file).get("max_seq_length") if file.is_file() else None
    return limit if isinstance(limit, int) else None


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{file} cannot be read: {error}", param="model") from error


def _names(mapping: Any) -> set[str]:
    names: set[str] = set()
    for value in mapping.values():
        names |= {value} if isinstance(value, str) else set(value)
    return names


def _refused(path: Path, why: str) -> InvalidRequest:
    return InvalidRequest(f"--model {path} {why}", param="model")
