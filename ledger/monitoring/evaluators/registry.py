"""From the name of an evaluator to the evaluator."""

import copy
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from weightledger.ledger.engines import Engine, RemoteEngine
from weightledger.ledger.engines.text import embeds, generates
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring.evaluation import Evaluator, Scores, scores_of
from weightledger.ledger.monitoring.evaluators import held_out, outside, texts
from weightledger.ledger.monitoring.time_limits import limited
from weightledger.ledger.plugins import load_plugin, plugin_ids

GROUP = "weightledger.evaluators"

Make = Callable[[str, Engine, float], Evaluator]
"""Makes one of its argument, for the model that an engine holds, with a time limit in seconds."""


def _perplexity(argument: str, engine: Engine, _: float) -> Evaluator:
    model = generates(engine)
    if model is None:
        raise InvalidRequest("only a causal language model has a perplexity")
    return texts.perplexity(Path(argument), model)


def _similarity(argument: str, engine: Engine, _: float) -> Evaluator:
    model = embeds(engine)
    if model is None:
        raise InvalidRequest("similarity is that of texts, and this model does not embed any")
    return texts.similarity(Path(argument), model)


KINDS: Mapping[str, Make] = {
    "held-out": lambda argument, _, __: held_out.held_out(Path(argument)),
    "regression": lambda argument, _, __: held_out.regression(Path(argument)),
    "similarity": _similarity,
    "perplexity": _perplexity,
    "command": lambda argument, _, limit: outside.command(argument, limit),
}
_OUTSIDE = ("command", "http", "https")


def evaluator_of(names: Sequence[str], engine: Engine, timeout_s: float) -> Evaluator | None:
    """What these names stand for, together; None for none. See `monitoring.evaluators`.

    Raises InvalidRequest for a name that stands for nothing, and for one that needs the model in
    this process where the engine drives another.
    """
    parts = {name: limited(_made(name, engine, timeout_s), timeout_s) for name in names}
    if len(parts) < 2:
        return next(iter(parts.values()), None)
    return Several(parts, timeout_s)


class Several:
    """Several evaluators of one state, each with a copy of its own; their metrics differ."""

    def __init__(self, parts: Mapping[str, Evaluator], timeout_s: float) -> None:
        self._parts = parts
        self.timeout_s = timeout_s * len(parts)

    def __call__(self, module: torch.nn.Module) -> Scores:
        metrics: dict[str, float] = {}
        items: dict[str, torch.Tensor] = {}
        for number, (name, part) in enumerate(self._parts.items(), 1):
            own = module if number == len(self._parts) else copy.deepcopy(module)
            told = scores_of(part(own))
            if twice := metrics.keys() & told.metrics.keys():
                raise InvalidRequest(f"{name} gives {min(twice)}, which another one gives too")
            metrics |= told.metrics
            items |= told.items
        return Scores(metrics, items)


def _made(name: str, engine: Engine, timeout_s: float) -> Evaluator:
    kind, _, argument = name.partition(":")
    if isinstance(engine, RemoteEngine) and kind not in _OUTSIDE:
        raise _refused(name, "the model is in another process: use command: or a URL")
    try:
        if name.startswith(("http://", "https://")):
            return outside.Endpoint(name, timeout_s)
        if kind in KINDS:
            return KINDS[kind](argument, engine, timeout_s)
        plugin = load_plugin(GROUP, kind)
        if plugin is not None:
            made: Evaluator = plugin(argument, engine, timeout_s)
            return made
        return _imported(kind, argument)
    except InvalidRequest as error:
        raise _refused(name, str(error)) from None


def _imported(module: str, attribute: str) -> Evaluator:
    """`module:function`; a class is made without arguments."""
    if not attribute or not all(part.isidentifier() for part in module.split(".")):
        known = ", ".join([*KINDS, *plugin_ids(GROUP)])
        raise InvalidRequest(f"expected KIND:ARGUMENT ({known}), a URL, or module:function")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        told: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidRequest(str(error)) from error
    told = told() if isinstance(told, type) else told
    if not callable(told):
        raise InvalidRequest(f"must be callable, got {type(told).__name__}")
    evaluator: Evaluator = told
    return evaluator


def _refused(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"the evaluator {name!r}: {why}", param="evaluator")
