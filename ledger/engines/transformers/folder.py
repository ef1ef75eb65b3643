"""Reading a Hugging Face folder: config.json, *.safetensors, a tokenizer, and pooling files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import normalizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTextEncoding,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from weightledger.ledger.engines.transformers import sentences
from weightledger.ledger.engines.transformers.sentences import Sentences
from weightledger.ledger.errors import InvalidRequest

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_SHOWN = 4

# Families whose encoder is served by itself, out of models with an encoder and a decoder.
_TEXT_ENCODERS = ("t5", "mt5", "umt5", "t5gemma")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a folder holds. `embeds` says that it is for embeddings, by what `sentences` says."""

    model: torch.nn.Module
    tokenizer: Any
    embeds: bool
    sentences: Sentences


def read(path: Path) -> ModelFolder:
    """Load everything; InvalidRequest says what is missing or not supported."""
    if not (path / "config.json").is_file():
        raise _refused(path, "has no config.json; expected a Hugging Face model folder")
    if not any(path.glob("*.safetensors")):
        raise _refused(path, "has no *.safetensors file; pickled weights (*.bin) are not read")
    if (path / "adapter_config.json").is_file():
        raise _refused(
            path, "holds an adapter beside the model; serve the model and load the adapter"
        )
    if (path / "custom_generate").is_dir():
        raise _refused(path, "generates by code of its own (custom_generate), which is not run")
    try:
        config = AutoConfig.from_pretrained(path, **_LOCAL)
        auto = _auto(path, config)
        embeds = auto is not AutoModelForCausalLM
        said = sentences.read(path) if embeds else Sentences()
        tokenizer = AutoTokenizer.from_pretrained(path, **_LOCAL)
        if said.lower_case:
            _lower(tokenizer)
        return ModelFolder(_model(path, config, auto), tokenizer, embeds, said)
    except InvalidRequest:
        raise
    except Exception as error:
        raise _refused(path, f"cannot be loaded: {type(error).__name__}: {error}") from error


def kind(config: Any, *, embedder: bool = False) -> Any:
    """The class of transformers that loads a model of this config; None for none that is served.

    `embedder` says that it is wanted for embeddings, which causal models can make too.
    """
    architectures = set(config.architectures or ())
    causal = architectures & _names(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if architectures & _names(MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES) and (
        config.model_type in _TEXT_ENCODERS
    ):
        return AutoModelForTextEncoding
    if config.is_encoder_decoder:
        return None
    if causal:
        return AutoModel if embedder else AutoModelForCausalLM
    encoders = _names(MODEL_MAPPING_NAMES) | _names(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    return AutoModel if architectures & encoders else None


def _auto(path: Path, config: Any) -> Any:
    auto = kind(config, embedder=sentences.is_embedder(path))
    if auto is None:
        named = ", ".join(sorted(config.architectures or ())) or "no named architecture"
        raise _refused(
            path,
            f"holds {named}; expected a causal language model (…ForCausalLM) or a text encoder "
            "(such as BertModel). Serve other models with --model module:factory",
        )
    return auto


def _model(path: Path, config: Any, auto: Any) -> Any:
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
    if auto is not AutoModelForCausalLM:
        absent = _without_unused(model, absent)
    absent += [f"{name} of the right shape" for name, *_ in sorted(report["mismatched_keys"])]
    if absent:
        more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        raise _refused(
            path, f"lacks weights that the model needs: {', '.join(absent[:_SHOWN])}{more}"
        )
    return model.eval()


def _lower(tokenizer: Any) -> None:
    """Have a tokenizer lower all text first, as sentence-transformers' do_lower_case does."""
    backend = tokenizer.backend_tokenizer
    others = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *others])


def _without_unused(model: Any, absent: list[str]) -> list[str]:
    """Take parts that the folder has no weights of at all off an encoder; those that stay absent.

    Most often it is the pooler, which folders of masked language models lack and vectors of tokens
    never pass through. Whether a model can do without is tried before it is served.
    """
    for name, part in list(model.named_children()):
        own = {f"{name}.{key}" for key in part.state_dict()}
        if own and own <= set(absent) and name in model._modules:
            setattr(model, name, None)
            absent = [key for key in absent if key not in own]
    return absent


def _names(mapping: Any) -> set[str]:
    names: set[str] = set()
    for value in mapping.values():
        names |= {value} if isinstance(value, str) else set(value)
    return names


def _refused(path: Path, why: str) -> InvalidRequest:
    return InvalidRequest(f"--model {path} {why}", param="model")
