"""What gc has dropped, told by the log itself: the fold of its `pruned` events."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from weightledger.ledger.events.bodies import Pruning


@dataclass(frozen=True, slots=True)
class Prunings:
    """The state-changing events that lead nowhere any more, and the snapshots that are gone.

    `firsts` and `lasts` are the ends of ascending, disjoint ranges of seqs; `runs` counts the
    events that say so, and `unread` those of them that are damaged: what they dropped is missing
    wherever it is looked for.
    """

    firsts: tuple[int, ...] = ()
    lasts: tuple[int, ...] = ()
    snapshots: frozenset[int] = frozenset()
    runs: int = 0
    unread: int = 0

    def __call__(self, seq: int) -> bool:
        """Whether what this event stored was dropped."""
        at = bisect_right(self.firsts, seq) - 1
        return at >= 0 and seq <= self.lasts[at]

    def any_between(self, start: int, stop: int) -> bool:
        """Whether what one of the events behind `start` up to `stop` stored was dropped."""
        at = bisect_right(self.firsts, stop) - 1
        return start < stop and at >= 0 and self.lasts[at] > start

    def snapshot(self, node: int) -> bool:
        """Whether a snapshot that once stood at this node was dropped."""
        return node in self.snapshots


NOTHING_PRUNED = Prunings()


def barring(prunings: Prunings, seqs: Iterable[int]) -> Prunings:
    """The same, with further state changes that lead nowhere."""
    ranges = list(zip(prunings.firsts, prunings.lasts, strict=True)) + [(seq, seq) for seq in seqs]
    firsts, lasts = _merged(ranges)
    return replace(prunings, firsts=firsts, lasts=lasts)


def fold(prunings: Sequence[Pruning | None]) -> Prunings:
    """All that the `pruned` events of a log dropped; None for one that is damaged."""
    ranges: list[tuple[int, int]] = []
    snapshots: set[int] = set()
    for pruning in prunings:
        if pruning is not None:
            ranges += pruning.ranges
            snapshots |= set(pruning.snapshots)
    firsts, lasts = _merged(ranges)
    unread = sum(pruning is None for pruning in prunings)
    return Prunings(firsts, lasts, frozenset(snapshots), len(prunings), unread)


def _merged(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First and last seqs of the ranges, ascending and disjoint."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(first for first, _ in merged), tuple(last for _, last in merged)


def body(seqs: Sequence[int], snapshots: Iterable[int], retained: int) -> Pruning:
    """The body of a `pruned` event: ascending seqs as ranges, and the snapshots dropped."""
    ranges: list[tuple[int, int]] = []
    for seq in seqs:
        if ranges and seq == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], seq)
        else:
            ranges.append((seq, seq))
    return Pruning(tuple(ranges), tuple(sorted(snapshots)), retained, len(seqs))
