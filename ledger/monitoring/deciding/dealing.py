"""Values from outside, dealt to the tests of two states side by side.

Those tests rely on the coin that decides which state a request meets. Of what is pushed it decides
nothing: somebody may score the new state alone, or one in ten requests to the old one. Taken as it
comes, each value of the new state would be a bet won. So a coin of the test's own says of which
side the next value is, and what comes of the other one waits.
"""

from collections import deque

import numpy as np

from weightledger.ledger.monitoring.deciding.comparisons import Mask
from weightledger.ledger.monitoring.deciding.wagers import Array

_MOST_WAITING = 1000  # of one side; the oldest give way


class Dealer:
    """The values of one metric; with probability `share` the next one dealt is of the new state.

    The newest that waits is dealt first, so that both sides are of about the same time.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._coin = np.random.default_rng(0)
        self._waiting: dict[bool, deque[float]] = {
            side: deque(maxlen=_MOST_WAITING) for side in (False, True)
        }
        self._next = self._tossed()

    def deal(self, values: Array, new: Mask) -> tuple[Array, Mask]:
        """Take values, [n], and which are of the new state; gives those whose turn it is."""
        dealt: list[float] = []
        sides: list[bool] = []
        for value, side in zip(values.tolist(), new.tolist(), strict=True):
            self._waiting[side].append(value)
            while self._waiting[self._next]:
                dealt.append(self._waiting[self._next].pop())
                sides.append(self._next)
                self._next = self._tossed()
        return np.array(dealt, np.float64), np.array(sides, np.bool_)

    def _tossed(self) -> bool:
        return bool(self._coin.random() < self._share)
