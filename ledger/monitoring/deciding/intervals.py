"""How much worse a new state is: bounds that hold at every moment, by the decider's own tests.

A confidence sequence is what tests leave over (Waudby-Smith and Ramdas, JRSS B 2024, section 2):
for each effect of a grid there is a bet against "it is at most this", and one against "it is at
least this". The lower bound is the largest effect of which the first is refuted, the upper one the
smallest of which the second is. Since the bets may be looked at after each request, so may the
bounds: they hold all at once, with probability 1 - α.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from weightledger.ledger.monitoring.deciding.comparisons import Aspect, Concurrent, Mask
from weightledger.ledger.monitoring.deciding.wagers import Array, Wager

Scale = Literal["relative", "difference"]
"""An effect of 0.1 is 10 % more, or ten percentage points more."""

_RELATIVE = (-0.5, -0.3, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)
_DIFFERENCE = (-0.3, -0.1, -0.05, -0.02, -0.01, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)


class _Bets(Protocol):
    """Two bets on one effect."""

    def observe(self, values: Array, new: Mask) -> None:
        """Take values as `Comparison.observe` does."""

    def harmful(self, alpha: float) -> bool:
        """Whether "at most this effect" is refuted."""

    def harmless(self, alpha: float) -> bool:
        """Whether "at least this effect" is."""


class Interval:
    """Bounds of the effect of a new state beside the old one, each value a cost.

    `lower` and `upper` are effects of the grid, which has the `limit`; None while nothing is known.
    They never get wider. `alpha_low` is the error rate of the lower bound, `alpha_high` of the
    upper one.
    """

    def __init__(
        self, aspect: Aspect, share: float, limit: float, alpha_low: float, alpha_high: float
    ) -> None:
        self.scale: Scale = "difference" if aspect == "event" else "relative"
        grid: Sequence[float] = _DIFFERENCE if aspect == "event" else _RELATIVE
        self._open: dict[float, _Bets] = {
            effect: _Difference(share, effect)
            if aspect == "event"
            else Concurrent(aspect, share, effect)
            for effect in sorted({*grid, limit})
        }
        self._alpha_low, self._alpha_high = alpha_low, alpha_high
        self.lower: float | None = None
        self.upper: float | None = None

    def observe(self, values: Array, new: Mask) -> None:
        """Take values, [n], in the order they came; `new` says which are of the new state."""
        for bets in self._open.values():
            bets.observe(values, new)
        low = [effect for effect, bets in self._open.items() if bets.harmful(self._alpha_low)]
        high = [effect for effect, bets in self._open.items() if bets.harmless(self._alpha_high)]
        if low:
            self.lower = max(low) if self.lower is None else max(self.lower, *low)
        if high:
            self.upper = min(high) if self.upper is None else min(self.upper, *high)
        # What is outside of the bounds stays there.
        self._open = {
            effect: bets
            for effect, bets in self._open.items()
            if (self.lower is None or effect > self.lower)
            and (self.upper is None or effect < self.upper)
        }


class _Difference:
    """Bets on "events are more frequent by `effect` on the new state", one for more, one for less.

    Each request pays what the state it met makes of it, so that the mean is the difference of the
    rates whatever the coin's share is.
    """

    def __init__(self, share: float, effect: float) -> None:
        self._share, self._effect = share, effect
        self._more, self._less = Wager(bold=True), Wager()

    def observe(self, values: Array, new: Mask) -> None:
        weighted = np.where(new, values / self._share, -values / (1 - self._share))
        self._more.bet((weighted - self._effect) / (1 / (1 - self._share) + self._effect))
        self._less.bet((self._effect - weighted) / (1 / self._share - self._effect))

    def harmful(self, alpha: float) -> bool:
        return self._more.refutes(alpha)

    def harmless(self, alpha: float) -> bool:
        return self._less.refutes(alpha)
