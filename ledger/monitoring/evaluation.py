"""Evaluators: what scores a model state before it is visible."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from weightledger.ledger.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Scores:
    """What an evaluator says of one state.

    `metrics` are numbers such as {"accuracy": 0.97}. `items` are, for some of those metrics, the
    scores of the single items in a fixed order, float64 [items]; higher is better for every one of
    them, whatever the metric's direction. Two states that are scored on the same items are
    compared item by item (`pairing.paired`).
    """

    metrics: Mapping[str, float]
    items: Mapping[str, torch.Tensor] = field(default_factory=dict)


@runtime_checkable
class Evaluator(Protocol):
    """Scores a module in the state to judge.

    The module is the evaluator's own: a copy, weights included, that shares nothing with what is
    served. Whatever an evaluator does to it, then or later, changes nothing else. It may give a
    plain mapping such as {"accuracy": 0.97} in the place of scores without items. One that ends by
    itself at a time limit has an attribute `timeout_s`; the others are called with one.
    """

    def __call__(self, module: torch.nn.Module, /) -> Mapping[str, float] | Scores:
        """The scores; whatever it raises means that the state is unknown, which is not good."""


def scores_of(answer: object) -> Scores:
    """An evaluator's answer as scores; InvalidRequest says what is wrong with one that is none.

    Numbers that are not finite stay: a metric that is NaN is one that is known to be bad.
    """
    told = answer if isinstance(answer, Scores) else Scores(answer)  # type: ignore[arg-type]
    if not isinstance(told.metrics, Mapping):
        raise InvalidRequest(
            "an evaluator gives metrics such as {'accuracy': 0.97}, got "
            f"{type(told.metrics).__name__} {str(told.metrics)[:80]}"
        )
    metrics = {name: _number(name, value) for name, value in told.metrics.items()}
    items = {name: _items(name, values) for name, values in told.items.items()}
    if unknown := sorted(items.keys() - metrics.keys()):
        raise InvalidRequest(
            f"an evaluator gives items of {unknown[0]!r}, but no metric of that name"
        )
    return Scores(metrics, items)


def _number(name: object, value: object) -> float:
    if not isinstance(name, str):
        raise InvalidRequest(f"an evaluator names its metrics by text, got {name!r}")
    try:
        if isinstance(value, str | bytes):  # what looks like a number in a text is a mistake
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise InvalidRequest(f"the evaluator's {name} is {value!r:.80}, no number") from None


def _items(name: str, values: torch.Tensor | Sequence[float]) -> torch.Tensor:
    try:
        tensor = torch.as_tensor(values).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidRequest(f"the evaluator's items of {name} are no numbers: {error}") from None
    if tensor.ndim != 1 or not len(tensor):
        raise InvalidRequest(
            f"the evaluator's items of {name} are [items], got {tuple(tensor.shape)}"
        )
    return tensor
