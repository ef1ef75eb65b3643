"""The search with a judge that is always right: halve, and go round what cannot be judged."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Literal

from weightledger.ledger.errors import InvalidRequest

Verdict = Literal["good", "bad", "skip"]


@dataclass(frozen=True, slots=True)
class Bracket:
    """The last state known to be good and the first known to be bad, by their numbers."""

    good: int
    bad: int

    @property
    def suspects(self) -> int:
        """How many steps lie between them; one is the answer."""
        return self.bad - self.good


def bracket(last: int, verdicts: Mapping[int, Verdict]) -> Bracket:
    """What the verdicts leave of a way whose states are 0 (good) to `last` (bad).

    Contradiction where a state is good that comes after a bad one, or an end is not what it is.
    """
    bad = min((place for place, verdict in verdicts.items() if verdict == "bad"), default=last)
    goods = [place for place, verdict in verdicts.items() if verdict == "good"]
    above = [place for place in (0, *goods) if place >= bad]
    if above:
        raise Contradiction(bad, min(above))
    return Bracket(max(goods, default=0), bad)


class Contradiction(InvalidRequest):
    """A state was called good that comes after one called bad, by their numbers on the way."""

    def __init__(self, bad: int, good: int) -> None:
        super().__init__(
            f"state {good} of the way was judged good, but state {bad} before it bad: more than "
            "one step changed the verdict, or the judge is not always right; --noisy searches "
            "with a judge that errs"
        )
        self.bad, self.good = bad, good


def probes(between: Bracket, skipped: Collection[int], most: int = 1) -> list[int]:
    """Up to `most` states to judge next, in order; none when nothing is left to judge.

    They cut what is between into equal parts. Where a cut lies among states that could not be
    judged, those between them are taken to be such too: first the states on either side of them
    are judged, the middle of the wider side first, and the ones among them when no other is left.
    """
    inside = sorted(place for place in skipped if between.good < place < between.bad)
    chosen: list[int] = []
    instead = _instead(between, inside)
    for part in range(1, most + 1):
        # Rounded up: while all is good, which leaves the last end to be judged too, it is one less.
        cut = between.good + -(-between.suspects * part // (most + 1))
        free = cut < between.bad and cut not in chosen
        if free and not (inside and inside[0] <= cut <= inside[-1]):
            chosen.append(cut)
            continue
        other = next((place for place in instead if place not in chosen), None)
        if other is not None:
            chosen.append(other)
    return sorted(chosen)


def _instead(between: Bracket, inside: Sequence[int]) -> Iterator[int]:
    """States that are not skipped, in the order in which they are worth judging."""
    if not inside:
        yield from _middles([(between.good, between.bad)])
        return
    yield from _middles([(between.good, inside[0]), (inside[-1], between.bad)])
    yield from _middles(list(pairwise(inside)))


def _middles(gaps: Sequence[tuple[int, int]]) -> Iterator[int]:
    """What lies in gaps, ends not included: the middle of the widest first, which leaves two."""
    heap = [(first - last, first, last) for first, last in gaps]
    heapify(heap)
    while heap:
        _, first, last = heappop(heap)
        if last - first < 2:
            return
        middle = (first + last) // 2
        yield middle
        for half in ((first, middle), (middle, last)):
            heappush(heap, (half[0] - half[1], *half))
