"""Two states scored on the same items, compared item by item by an exact test.

Of right and wrong answers the sign test is McNemar's exact test: items that both states answer
alike say nothing about which is better.
"""

from dataclasses import dataclass
from typing import Any

import torch

from weightledger.ledger.monitoring.evaluation import Scores
from weightledger.ledger.monitoring.significance import sign_test


@dataclass(frozen=True, slots=True)
class Paired:
    """How many items got better and worse, and how likely that many are by chance.

    `p_worse` is the one-sided p of "the candidate is worse", `p_better` of the contrary; both are
    exact. An item that is not finite afterwards is worse than any that is.
    """

    metric: str
    items: int
    better: int
    worse: int
    p_better: float
    p_worse: float

    def __str__(self) -> str:
        return (
            f"{self.metric} of {self.items} items: {self.worse} got worse and {self.better} better,"
            f" p = {self.p_worse:.2g}"
        )

    def evidence(self) -> dict[str, Any]:
        """For an event, as JSON."""
        return {
            "metric": self.metric,
            "test": "sign",
            "items": self.items,
            "better": self.better,
            "worse": self.worse,
            "p_better": self.p_better,
            "p_worse": self.p_worse,
        }


def paired(before: Scores, after: Scores, metric: str) -> Paired | None:
    """The comparison by one metric; None unless both have items of it, and as many of them."""
    one, other = before.items.get(metric), after.items.get(metric)
    if one is None or other is None or len(one) != len(other):
        return None
    if torch.equal(one, other):  # as after most small updates
        return Paired(metric, len(one), 0, 0, 1.0, 1.0)
    lowest = float("-inf")
    one, other = (items.where(items.isfinite(), lowest) for items in (one, other))
    better, worse = int((other > one).sum()), int((other < one).sum())
    return Paired(
        metric, len(one), better, worse, sign_test(better, worse), sign_test(worse, better)
    )
