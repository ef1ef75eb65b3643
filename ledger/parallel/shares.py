"""The tensors of a state shared out: each share is a range of names, so that it has an answer for
every tensor that ever comes."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from weightledger.ledger.parallel import Executor


@dataclass(frozen=True, slots=True)
class Share:
    """The names from `first` on and before `end`, None for as far as names go.

    The first share also looks after what belongs to no tensor.
    """

    first: str | None = None
    end: str | None = None

    def __contains__(self, name: str) -> bool:
        return (self.first is None or name >= self.first) and (self.end is None or name < self.end)

    @property
    def is_first(self) -> bool:
        return self.first is None

    def of(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are in it."""
        return [name for name in names if name in self]

    def to_json(self) -> dict[str, Any]:
        return {"first": self.first, "end": self.end}


EVERYTHING = Share()

SHORTEST_S = 0.5
"""Seconds of work that are worth a task."""


def worth(seconds: float, executor: Executor) -> int:
    """How many tasks so many seconds of work are worth; 1 where sharing would gain nothing."""
    least_s = 2 * max(SHORTEST_S, executor.start_s)
    return 1 if seconds < least_s else min(executor.jobs, int(seconds / SHORTEST_S))


def shares(work: Mapping[str, int], count: int) -> list[Share]:
    """At most `count` shares of about the same work; `work` says how much each name is.

    There are fewer where one tensor is more than a share.
    """
    names = sorted(work)
    sums, total = [], 0
    for name in names:
        total += work[name]
        sums.append(total)
    cuts: list[str | None] = [None]
    for number in range(1, count):
        place = bisect_right(sums, total * number / count)
        # The name that lies across the cut goes to the side where more of it is.
        if place < len(names) and place > 0:
            across = total * number / count - sums[place - 1]
            place += across > work[names[place]] / 2
        if 0 < place < len(names) and names[place] != cuts[-1]:
            cuts.append(names[place])
    return [Share(first, end) for first, end in pairwise([*cuts, None])]
