"""Judging replayed states with an evaluator, in this process or in another."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightledger import DynamicModelManager
from weightledger.api.server import loading
from weightledger.ledger.debug.bisect.judges import CalledJudge, NamedJudge, StateToJudge
from weightledger.ledger.engines import Engine, Separable
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring.evaluation import Evaluator, scores_of
from weightledger.ledger.monitoring.evaluators.registry import evaluator_of
from weightledger.ledger.monitoring.time_limits import limited

BUILT_IN = "built-in"

_TIMEOUT_S = 86_400.0  # a judge has a limit of its own


@dataclass(frozen=True, slots=True)
class Subject:
    """What is scored and by what, as text, so that another process can load it too.

    `model` is as for `serve --model`; `evaluator` is "built-in", the model's own, or as for
    `serve --evaluator`.
    """

    model: str
    data_dir: Path
    evaluator: str

    def load(self) -> tuple[loading.LoadedModel, Evaluator]:
        """The model and its evaluator; InvalidRequest where there is none."""
        return _loaded(self)


@functools.lru_cache(maxsize=2)
def _loaded(subject: Subject) -> tuple[loading.LoadedModel, Evaluator]:
    loaded = loading.load(subject.model, subject.data_dir)
    if subject.evaluator == BUILT_IN:
        if loaded.evaluator is None:
            raise InvalidRequest(
                f"{subject.model} has no evaluator of its own: name one as module:function",
                param="evaluator",
            )
        return loaded, loaded.evaluator
    evaluator = evaluator_of([subject.evaluator], loaded.engine, _TIMEOUT_S)
    assert evaluator is not None
    return loaded, evaluator


def score(subject: Subject, weights: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a state; InvalidRequest where the weights are not the model's."""
    loaded, evaluator = subject.load()
    return measured(loaded.engine, evaluator, weights)


def measured(
    engine: Engine, evaluator: Evaluator, weights: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """The metrics of an engine's model with these weights, further names of tied ones included."""
    first = engine.aliases().keys()
    named = {name: tensor for name, tensor in weights.items() if name not in first}
    return dict(scores_of(evaluator(engine.prepare(named).module)).metrics)


class Evaluating(CalledJudge):
    """An evaluator in this process."""

    def __init__(self, model: str, data_dir: Path | str, evaluator: str) -> None:
        subject = Subject(model, Path(data_dir), evaluator)
        own = subject.load()[0].engine.specs().keys()

        def scored(state: StateToJudge) -> dict[str, float]:
            return score(subject, {n: t for n, t in state.weights.items() if n in own})

        super().__init__(scored)

    @staticmethod
    def named(subject: Subject, limit_s: float | None) -> NamedJudge:
        """The same for another process, which is ended where it takes longer."""
        data = {
            "model": subject.model,
            "data_dir": str(subject.data_dir.absolute()),
            "evaluator": subject.evaluator,
        }
        return NamedJudge(f"{__name__}:Evaluating", data, limit_s)


def evaluating_served(manager: DynamicModelManager) -> CalledJudge:
    """The evaluator that the manager's candidates meet, as a judge of states.

    It looks at a copy of the served model, beside what is live. InvalidRequest where the server has
    no evaluator, or no model of its own.
    """
    evaluator, engine = manager.evaluator, manager.engine
    if evaluator is None:
        raise InvalidRequest(
            "this server has no evaluator: start it with --evaluator, or judge elsewhere and send "
            "the verdicts",
            param="judge",
        )
    if not isinstance(engine, Separable):
        raise InvalidRequest(
            "the model is in another process: judge elsewhere and send the verdicts", param="judge"
        )
    model = engine.apart()
    limit = limited(evaluator, manager.config.evaluator_timeout_s)
    return CalledJudge(lambda state: measured(model, limit, state.weights))
