"""How many events there were over time, in steps that people count in.

Times never decrease along a log, so what lies between two of them is a difference of two seqs, each
found by bisection: the cost depends on the number of steps and not on the length of the log. How
many events came before a time that the log has passed never changes, so that is asked only once.
"""

from dataclasses import dataclass
from itertools import pairwise

from weightledger.ledger.store import EventStore

MOST_STEPS = 120

_SECOND, _MINUTE, _HOUR, _DAY = 1_000_000, 60_000_000, 3_600_000_000, 86_400_000_000
_LADDER = [
    *(n * _SECOND for n in (1, 2, 5, 10, 15, 30)),
    *(n * _MINUTE for n in (1, 2, 5, 10, 15, 30)),
    *(n * _HOUR for n in (1, 2, 3, 6, 12)),
    *(n * _DAY for n in (1, 2, 7, 14, 28)),
]
_KEPT = 20_000


@dataclass(frozen=True, slots=True)
class Density:
    """Events in steps of `step_us`, the first of which begins at `start_us`."""

    start_us: int
    step_us: int
    events: tuple[int, ...]


class Pace:
    """What is known of one log's times. Safe for many threads."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._before: dict[int, int] = {}

    def density(self, since: int | None, until: int | None) -> Density:
        """Events between two times, the whole log by default, in at most MOST_STEPS steps."""
        last = self._store.head().recorded_at
        if since is None:
            first = self._store.event(0)
            since = last if first is None else first.recorded_at
        until = last if until is None else max(until, since)
        step = _step(until - since)
        start = since // step * step
        bounds = range(start, max(until, since) // step * step + step + 1, step)
        counts = self._counts(bounds, last)
        return Density(
            start,
            step,
            tuple(counts[high] - counts[low] for low, high in pairwise(bounds)),
        )

    def _counts(self, bounds: range, last: int) -> dict[int, int]:
        known = self._before
        asked = [one for one in bounds if one not in known]
        counts = {one: known[one] for one in bounds if one in known}
        fresh = dict(zip(asked, self._store.recorded_before(asked), strict=True))
        if len(known) > _KEPT:
            self._before = known = {}
        # What is recorded from now on is as late as the last event, or later.
        known.update((moment, count) for moment, count in fresh.items() if moment <= last)
        return counts | fresh


def _step(length: int) -> int:
    """The shortest step of the ladder that goes MOST_STEPS times into a length, or more of them."""
    for step in _LADDER:
        if length // step + 2 <= MOST_STEPS:
            return step
    return -(-length // (_LADDER[-1] * (MOST_STEPS - 2))) * _LADDER[-1]
