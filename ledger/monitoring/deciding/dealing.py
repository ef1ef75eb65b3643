"""Values from outside, dealt to the tests of two states side by side.

Those tests rely on the coin that decides which state a request meets. Of what is pushed it decides
nothing: somebody may score the new state alone, or one in ten requests to the old one. Taken as it
comes, each value of the new state would be a bet won. So a coin of the test's own says of which
side the next value is, and what comes of the other one waits.

That makes up for how many values each side has, not for when they are from: the next values of the
two sides must differ by nothing but the state. Where those of one side come late while something
else drifts, the drift is taken for the state's doing: the verdict is confounded.
"""

from bisect import bisect, insort
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from weightledger.ledger.monitoring.deciding.comparisons import Mask
from weightledger.ledger.monitoring.deciding.wagers import Array

Times = npt.NDArray[np.int64]
"""When values are of, in microseconds since 1970."""

_MOST_WAITING = 1000  # of one side; the oldest give way
_TIME = itemgetter(0)


class Dealer:
    """The values of one metric; with probability `share` the next one dealt is of the new state.

    Of those that wait the one nearest in time to the last one dealt is next, so that both sides are
    of about the same time, whichever comes later.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        # Anew for each: tosses that are known, or the same in every trial, are no chance.
        self._coin = np.random.default_rng()
        self._waiting: dict[bool, list[tuple[int, float]]] = {False: [], True: []}
        self._last_us: int | None = None
        self._next = self._tossed()

    def deal(self, values: Array, new: Mask, at_us: Times) -> tuple[Array, Mask]:
        """Take values, [n], which are of the new state, and when they are of; gives those whose
        turn it is."""
        dealt: list[float] = []
        sides: list[bool] = []
        for value, side, at in zip(values.tolist(), new.tolist(), at_us.tolist(), strict=True):
            insort(self._waiting[side], (at, value), key=_TIME)
            del self._waiting[side][:-_MOST_WAITING]
            while self._waiting[self._next]:
                dealt.append(self._nearest(self._waiting[self._next]))
                sides.append(self._next)
                self._next = self._tossed()
        return np.array(dealt, np.float64), np.array(sides, np.bool_)

    def _nearest(self, waiting: list[tuple[int, float]]) -> float:
        """What is next of those that wait, which is taken out."""
        last = waiting[-1][0] if self._last_us is None else self._last_us
        number = bisect(waiting, last, key=_TIME)
        if number == len(waiting) or (
            number > 0 and last - waiting[number - 1][0] <= waiting[number][0] - last
        ):
            number -= 1
        self._last_us, value = waiting.pop(number)
        return value

    def _tossed(self) -> bool:
        return bool(self._coin.random() < self._share)
