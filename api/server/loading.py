"""From `--model` to an engine: the built-in model, a Hugging Face folder, or `module:factory`."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from weightledger import Engine, TorchEngine
from weightledger.api.server import digits
from weightledger.api.server.settings import Settings
from weightledger.ledger.adapters import PREFIX
from weightledger.ledger.adapters.adapter import all_of
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring.evaluation import Evaluator


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model to serve: its name in the ledger, what holds it, and what scores it, if anything."""

    name: str
    engine: Engine
    evaluator: Evaluator | None = None


def load(model: str, data_dir: Path, name: str | None = None) -> LoadedModel:
    """Load what `--model` names; InvalidRequest says what was expected.

    `name` is the one to serve it under, instead of the folder's or `module:factory`.
    """
    if model == digits.NAME:
        module, evaluator = digits.load_digits(data_dir)
        return LoadedModel(name or digits.NAME, TorchEngine(module), evaluator)
    path = Path(model)
    if path.is_dir():
        return LoadedModel(name or path.resolve().name, _from_folder(path))
    if ":" not in model:
        raise InvalidRequest(
            f"--model must be {digits.NAME!r}, a Hugging Face folder (config.json, *.safetensors "
            f"and tokenizer files) or module:factory, got {model!r}",
            param="model",
        )
    return LoadedModel(name or model, TorchEngine(_from_factory(model)))


def configured(settings: Settings, name: str) -> LoadedModel | None:
    """What a server with these settings would serve under that name, if it has an evaluator."""
    if settings.engine != "embedded" or (settings.model != digits.NAME and not settings.evaluator):
        return None
    loaded = load(settings.model, settings.data_dir, settings.served_model_name)
    return loaded if loaded.name == name else None


def _from_folder(path: Path) -> Engine:
    try:
        import transformers.utils as transformers

        from weightledger.ledger.engines.transformers import TransformersEngine
    except ImportError as error:
        raise InvalidRequest(
            f"--model {path} needs transformers, which is not here ({error}); "
            "install it with: pip install 'weightledger[transformers]'",
            param="model",
        ) from error
    # The log of a server is no place for bars.
    transformers.logging.disable_progress_bar()
    return TransformersEngine.load(path)


def export_folder(state: Path, served: Path, out: Path) -> None:
    """A state in a safetensors file as a Hugging Face folder, the rest of it as in `served`."""
    from safetensors.torch import load_file

    try:
        from weightledger.ledger.engines.transformers import export
    except ImportError as error:
        raise InvalidRequest(
            f"a Hugging Face folder needs transformers, which is not here ({error})",
            param="hugging_face",
        ) from error
    tensors = load_file(state)
    adapters = all_of({n: t for n, t in tensors.items() if n.startswith(PREFIX)})
    beside = (PREFIX, "rule/")
    weights = {n: t for n, t in tensors.items() if not n.startswith(beside)}
    export.write(served, weights, adapters, out)


def _from_factory(model: str) -> torch.nn.Module:
    module_name, _, attribute = model.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidRequest(f"--model {model}: {error}", param="model") from error
    made = factory() if callable(factory) and not isinstance(factory, torch.nn.Module) else factory
    if not isinstance(made, torch.nn.Module):
        raise InvalidRequest(
            f"--model {model} must give a torch.nn.Module, got {type(made).__name__}",
            param="model",
        )
    return made
