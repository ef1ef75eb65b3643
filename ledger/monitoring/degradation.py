"""The specification's rule: has a metric become worse by more than a threshold?"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from weightledger.ledger.monitoring.metrics import higher_is_better


@dataclass(frozen=True, slots=True)
class Degradation:
    """One metric's fall: `change` is the loss relative to `before`, absolute when that is 0."""

    metric: str
    before: float
    after: float
    change: float
    threshold: float

    def __str__(self) -> str:
        return (
            f"{self.metric} went from {self.before:.6g} to {self.after:.6g}, "
            f"{self.change:.1%} worse, threshold {self.threshold:.1%}"
        )


def degradation(
    before: Mapping[str, float],
    after: Mapping[str, float],
    metrics: Iterable[str],
    threshold: float,
) -> Degradation | None:
    """The first of `metrics` that is worse by more than `threshold`; None if there is none.

    A metric that was not measured both before and after decides nothing here: `unknown` finds it.
    A threshold of 0 turns the rule off. A value that is not finite afterwards is worse than any
    finite one.
    """
    if threshold == 0:
        return None
    for metric in metrics:
        if metric not in before or metric not in after:
            continue
        loss = before[metric] - after[metric]
        if not higher_is_better(metric):
            loss = -loss
        change = loss / abs(before[metric]) if before[metric] else loss
        if change > threshold or not math.isfinite(after[metric]):
            return Degradation(metric, before[metric], after[metric], change, threshold)
    return None


def unknown(
    before: Mapping[str, float], after: Mapping[str, float], metrics: Iterable[str]
) -> str | None:
    """Why two scores cannot be compared by `metrics`; None when they can.

    A metric that neither has is not the scores' matter, unless there is no other.
    """
    watched = list(metrics)
    shared = [metric for metric in watched if metric in before or metric in after]
    if not shared:
        return f"the evaluator gave none of {', '.join(watched)}"
    for metric in shared:
        if not math.isfinite(before.get(metric, math.nan)):
            return f"the evaluator gave no {metric} of the live state that is a number"
        if metric not in after:
            return f"the evaluator gave no {metric} of the candidate"
    return None
