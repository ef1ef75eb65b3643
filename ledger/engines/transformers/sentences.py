"""What sentence-transformers' files in a folder say about embeddings: honoured, or refused by name.

modules.json                       Transformer, Pooling, Normalize, in this order; others refused
PATH/config.json of each           the ways of pooling; all other fields refused
sentence_bert_config.json          max_seq_length, do_lower_case; other fields if they are neutral
config_sentence_transformers.json  the default prompt, truncate_dim; what has no effect on vectors
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightledger.ledger import json_text
from weightledger.ledger.engines.transformers.encoder import MEAN, MODES, Pooling
from weightledger.ledger.errors import InvalidRequest

_MODULES = "modules.json"
_MODEL = "config_sentence_transformers.json"

# The first that is there counts; families had names of their own once.
_TRANSFORMER = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}

# Values that change nothing, by field. `unpad_inputs` is a matter of speed.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "modality_config": (_TEXT,),
    "module_output_name": ("token_embeddings",),
    "processing_kwargs": ({},),
    "unpad_inputs": (True, False),
    "query_length": (),
    "document_length": (),
    "query_expansion": (),
    "model_args": ({},),
    "model_kwargs": ({},),
    "tokenizer_args": ({},),
    "processor_kwargs": ({},),
    "config_args": ({},),
    "config_kwargs": ({},),
    "module_input_name": ("sentence_embedding",),
}


@dataclass(frozen=True, slots=True)
class Sentences:
    """How text becomes one vector; `prompt` goes before each text, `max_tokens` may be None."""

    pooling: Pooling = MEAN
    max_tokens: int | None = None
    prompt: str = ""
    lower_case: bool = False


def is_embedder(path: Path) -> bool:
    """Whether the folder is sentence-transformers', whatever its model can do otherwise."""
    return (path / _MODULES).is_file()


def read(path: Path) -> Sentences:
    """What the files of a folder say; InvalidRequest names what is not supported."""
    transformer: Mapping[str, Any] = {}
    for name in _TRANSFORMER:
        if (path / name).is_file():
            transformer = _object(path / name)
            _require_neutral(path / name, transformer, {"max_seq_length", "do_lower_case"})
            break
    limit = transformer.get("max_seq_length")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise _refused(path, f"has max_seq_length {limit!r:.40}; expected a whole number from 1")
    prompt, dimensions = _model(path)
    pooling, prompted = _pooling(path)
    if prompt and not prompted:
        raise _refused(
            path,
            "pools without its default prompt (include_prompt false in Pooling), which is not "
            "supported",
        )
    return Sentences(
        Pooling(pooling.mode, pooling.normalize, dimensions),
        limit,
        prompt,
        transformer.get("do_lower_case") is True,
    )


def _pooling(path: Path) -> tuple[Pooling, bool]:
    """What comes after the model, and whether the prompt's tokens are pooled too."""
    if not is_embedder(path):
        return MEAN, True
    listed = _json(path / _MODULES)
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise _refused(path, f"has a {_MODULES} that is not a list of modules")
    kinds: list[str] = []
    mode = MEAN.mode
    prompted = True
    for module in listed:
        package, _, kind = str(module.get("type")).rpartition(".")
        kinds.append(kind)
        at = path / str(module.get("path") or "")
        if package.partition(".")[0] != "sentence_transformers" or module.get("kwargs"):
            raise _refused(path, f"has a module {module.get('type')!r:.80} of its own code")
        if kind == "Transformer" and at != path:
            raise _refused(path, f"keeps its model in {module['path']!r:.80}; expected the folder")
        if kind == "Pooling":
            config = _object(at / "config.json")
            prompted = config.get("include_prompt", True) is not False
            mode = _mode(path, at / "config.json", config)
        elif kind == "Normalize" and (at / "config.json").is_file() and at != path:
            config = _object(at / "config.json")
            _require_neutral(at / "config.json", config, {"module_output_name"})
            if config.get("module_output_name") not in (None, "sentence_embedding"):
                raise _refused(path, f"normalizes to {config['module_output_name']!r:.40}")
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise _refused(
            path,
            f"has modules {', '.join(kinds) or 'of no kind'} in {_MODULES}; expected Transformer, "
            "Pooling and perhaps Normalize",
        )
    return Pooling(mode, "Normalize" in kinds), prompted


def _mode(path: Path, file: Path, config: Mapping[str, Any]) -> str | tuple[str, ...]:
    sized = {"word_embedding_dimension", "embedding_dimension", "include_prompt", "pooling_mode"}
    _require_neutral(file, config, sized | _SWITCHES.keys())
    named = config.get("pooling_mode")
    if named is None:
        modes = [mode for switch, mode in _SWITCHES.items() if config.get(switch)] or ["mean"]
    else:
        modes = [named] if isinstance(named, str) else list(named)
    if not modes or not all(mode in MODES for mode in modes):
        raise _refused(
            path,
            f"pools by {' and '.join(map(str, modes)) or 'nothing'}; expected {', '.join(MODES)}",
        )
    return modes[0] if len(modes) == 1 else tuple(modes)


def _model(path: Path) -> tuple[str, int | None]:
    """The default prompt and the dimensions that are kept, None for all."""
    file = path / _MODEL
    config = _object(file) if file.is_file() else {}
    kind = config.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise _refused(path, f"holds a {kind!r:.40}; expected a SentenceTransformer")
    # The similarity compares vectors that are made already; requirements are a library's versions.
    known = {"model_type", "prompts", "default_prompt_name", "truncate_dim"}
    known |= {"__version__", "similarity_fn_name", "requirements"}
    _require_neutral(file, config, known)
    prompts, name = config.get("prompts") or {}, config.get("default_prompt_name")
    dimensions = config.get("truncate_dim")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise _refused(path, f"has truncate_dim {dimensions!r:.40}; expected a number from 1")
    if name is None:
        return "", dimensions
    if not isinstance(prompts, dict) or not isinstance(name, str) or name not in prompts:
        raise _refused(path, f"has a default prompt {name!r:.80} that is not among its prompts")
    prompt = prompts[name]
    if not isinstance(prompt, str | None):
        raise _refused(path, f"has a prompt {name!r:.80} that is not text")
    return prompt or "", dimensions


def _require_neutral(file: Path, config: Mapping[str, Any], followed: set[str]) -> None:
    for field, value in config.items():
        if field not in followed and value is not None and value not in _NEUTRAL.get(field, ()):
            raise _refused(
                file.parent, f"has {field} {value!r:.60} in {file.name}, which is not supported"
            )


def _object(file: Path) -> Mapping[str, Any]:
    value = _json(file)
    if not isinstance(value, dict):
        raise _refused(file.parent, f"has a {file.name} that is not a JSON object")
    return value


def _json(file: Path) -> Any:
    try:
        return json_text.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{file} cannot be read: {error}", param="model") from error


def _refused(path: Path, why: str) -> InvalidRequest:
    return InvalidRequest(f"--model {path} {why}", param="model")
