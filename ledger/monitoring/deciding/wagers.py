"""Evidence that grows with every observation and may be looked at after each: testing by betting.

To doubt "no payoff is positive on average, whatever came before" is to bet on payoffs. Where the
doubt is wrong, the wealth that started at 1 exceeds 1/α with probability α at most, over all time
(Ville's inequality; Shafer, JRSS A 2021; Waudby-Smith and Ramdas, JRSS B 2024, section 4). So it is
right to look after each request, to stop early and to go on for ever.

How much of the wealth is put on each payoff is not known beforehand: it is spread over a grid of
fractions, and what wins takes over by itself.
"""

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_FRACTIONS = np.array([0.004, 0.01, 0.025, 0.06, 0.12, 0.25, 0.5, 0.75, 0.99])
_EVEN = np.full(len(_FRACTIONS), 1 / len(_FRACTIONS))
# Half on the boldest: where each payoff that counts is rare and points one way.
_BOLD = np.array([0.5 / (len(_FRACTIONS) - 1)] * (len(_FRACTIONS) - 1) + [0.5])


class Wager:
    """The wealth of bets against "the expected payoff is 0 or less".

    Payoffs are -1 or more. `bold` is for payoffs of rare events.
    """

    __slots__ = ("_log_wealth", "log_peak", "n")

    def __init__(self, *, bold: bool = False) -> None:
        self._log_wealth: Array = np.log(_BOLD if bold else _EVEN)
        self.n = 0
        self.log_peak = 0.0

    def bet(self, payoffs: Array) -> None:
        """Bet on payoffs, [n], one after the other; ValueError for one below -1."""
        if not len(payoffs):
            return
        if not payoffs.min() >= -1 - 1e-9:
            raise ValueError(f"a payoff is -1 or more, got {payoffs.min()}")
        paths = self._log_wealth + np.cumsum(np.log1p(np.outer(payoffs, _FRACTIONS)), axis=0)
        most = paths.max(axis=1)
        wealth = most + np.log(np.exp(paths - most[:, None]).sum(axis=1))
        self._log_wealth = paths[-1]
        self.log_peak = max(self.log_peak, float(wealth.max()))
        self.n += len(payoffs)

    @property
    def e_value(self) -> float:
        """The most the wealth has been; 1/α of it refutes at level α."""
        return math.exp(min(self.log_peak, 700.0))

    def refutes(self, alpha: float) -> bool:
        """Whether "no payoff is positive on average" is refuted at level `alpha`."""
        return self.log_peak >= -math.log(alpha)
