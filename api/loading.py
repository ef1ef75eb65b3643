"""From `--model` to a module: the built-in one, or `module:factory`."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from api import builtin
from ledger.errors import InvalidRequest
from ledger.monitoring.evaluation import Evaluator


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model to serve: its name in the ledger, the module, and what scores it, if anything."""

    name: str
    module: torch.nn.Module
    evaluator: Evaluator | None = None


def load(model: str, data_dir: Path) -> Loaded:
    """Load what `--model` names; InvalidRequest says what was expected."""
    if model == builtin.NAME:
        module, evaluator = builtin.load_digits(data_dir)
        return Loaded(builtin.NAME, module, evaluator)
    if ":" not in model:
        raise InvalidRequest(
            f"--model must be {builtin.NAME!r} or module:factory, got {model!r}", param="model"
        )
    return Loaded(model, _from_factory(model))


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
