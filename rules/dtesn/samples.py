"""Counting activities in samples, and taking them a few at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from weightledger.rules.dtesn.gate import SCORED
from weightledger.rules.errors import RuleError
from weightledger.rules.protocol import Rule

ROWS = ("batch", "time")
"""First dimensions that are counted in samples."""

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Samples:
    """How many samples there are, and how many rows of each activity one of them has.

    Activities without rows are the same for every sample; where none has any, all of it is one.
    """

    count: int
    rows: Mapping[str, int]

    def batches(self, activities: Tensors, size: int) -> Iterator[Tensors]:
        """`size` samples at a time, in order."""
        if not self.rows:
            yield activities
            return
        for start in range(0, self.count, size):
            yield {
                name: tensor[start * self.rows[name] : (start + size) * self.rows[name]]
                if name in self.rows
                else tensor
                for name, tensor in activities.items()
            }


def samples(rule: Rule, activities: Tensors) -> Samples:
    """The samples of a rule's activities, and of x, y and target where a gate scores with them.

    A row is a sample. Where a gate scores fewer samples than a rule of spikes has time steps, each
    sample lasts as many steps. RuleError where the rows do not come out even.
    """
    counted = {
        name: len(activities[name])
        for name, activity in rule.activities.items()
        if activity.shape[:1] in {(row,) for row in ROWS}
    }
    if not counted:
        return Samples(1, {})
    _check_even(counted)
    scored = {name: len(activities[name]) for name in SCORED if name in activities}
    _check_even(scored)
    rows = next(iter(counted.values()))
    count = next(iter(scored.values()), rows)
    if rows % count:
        _refuse({**counted, **scored})
    steps = rows // count
    return Samples(count, {**dict.fromkeys(scored, 1), **dict.fromkeys(counted, steps)})


def _check_even(counts: Mapping[str, int]) -> None:
    if len(set(counts.values())) > 1:
        _refuse(counts)


def _refuse(counts: Mapping[str, int]) -> None:
    said = ", ".join(f"{name} {count}" for name, count in counts.items())
    raise RuleError(f"activities have as many samples each, got {said}", param=next(iter(counts)))
