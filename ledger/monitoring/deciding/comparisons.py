"""What is bet on: one metric of a new state against one of an old one, or against an objective.

All values are costs here: higher is worse. `margin` is the relative increase that is no harm, and
part of what is doubted: only what is worse by more than that is evidence.

- `Concurrent`: both states serve at the same time, and a coin decides which one a request meets.
  Were the new state no worse, nobody could win by betting which state a request met from how it
  went: the coin knows nothing of it. That holds for any distribution, and while load, hours and
  users change (a randomisation test).
- `Succession`: the new state came after the old one. Each value is set against one of before, drawn
  without replacement. That is right where nothing but the state changed: the verdict is confounded
  with whatever else did.
- `Alongside`: both states serve at the same time, each on machines of its own. Each value of the
  new one is set against one of the old one from about then, and the bet is on which is worse. What
  differs between the machines is taken for the state's doing: confounded, too.
- `Objective`: the new state alone, against a share that is allowed.
- `Ceiling`: a gauge, such as memory, whose values say nearly the same again and again.
"""

from collections import deque
from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from weightledger.ledger.monitoring.deciding.wagers import Array, Wager

Mask = npt.NDArray[np.bool_]
Values = TypeVar("Values", float, Array)
Aspect = Literal["typical", "tail", "event"]
"""What of a metric is compared: where most values lie, the highest twentieth, or a yes or no."""

_TAIL = 0.95
_WARMUP = 40  # values before ranks mean anything
_RECENT = 1000
_MOST_WAITING = 100  # values of one side that wait for the other's
PAIRS = 2000
"""How many values of before are kept to be set against those after."""


class Comparison(Protocol):
    """One test of one metric. Safe to ask after every value, and whenever else."""

    test: str
    """What the event calls it."""
    confounded: bool
    """Whether something else than the state may have changed between the values compared."""

    @property
    def statistic(self) -> float:
        """How strong the evidence of harm is, in the test's own measure."""

    @property
    def limit(self) -> float | None:
        """The absolute value that counts as harm, where there is one."""

    def observe(self, values: Array, new: Mask) -> None:
        """Take values, [n], in the order they came; `new` says which are of the new state."""

    def harmful(self, alpha: float) -> bool:
        """Whether harm is shown; true of a harmless state with probability `alpha` at most."""

    def harmless(self, alpha: float) -> bool:
        """Whether it is shown that there is no harm: false while nobody knows."""


class _Betting:
    """What the tests by betting share."""

    limit: float | None = None

    def __init__(self, *, bold: bool) -> None:
        self.harm = Wager(bold=bold)

    @property
    def statistic(self) -> float:
        return self.harm.e_value

    def harmful(self, alpha: float) -> bool:
        return self.harm.refutes(alpha)

    def harmless(self, alpha: float) -> bool:
        return False


class Concurrent(_Betting):
    """New against old, side by side; `share` of the requests meet the new state.

    Doubts "new / (1 + margin) is stochastically no larger than old". `contrary` doubts the
    contrary, so that it proves the new state to be no worse than the margin.
    """

    test = "betting on the state"

    def __init__(self, aspect: Aspect, share: float, margin: float = 0.0) -> None:
        super().__init__(bold=aspect == "event")
        self.confounded = False
        self.contrary = Wager()
        self.aspect = aspect
        self._share = share
        self.margin = margin
        self._recent: Array = np.empty(0)

    def observe(self, values: Array, new: Mask) -> None:
        scaled = np.where(new, values / (1 + self.margin), values)
        if self.aspect == "event":
            self._bet(values, new)
            self.contrary.bet(self._no_more(values, new))
            return
        if len(self._recent) < _WARMUP:
            head, scaled = np.split(scaled, [_WARMUP - len(self._recent)])
            self._recent = np.concatenate((self._recent, head))
            new = new[len(head) :]
        if not len(scaled):
            return
        known = np.sort(self._recent)
        if self.aspect == "tail":
            scores = (scaled > known[int(_TAIL * len(known))]).astype(np.float64)
        else:
            below = np.searchsorted(known, scaled, "left") + np.searchsorted(known, scaled, "right")
            scores = below / len(known) - 1
        self._bet(scores, new)
        self.contrary.bet(self._payoffs(-scores, new))
        self._recent = np.concatenate((self._recent, scaled))[-_RECENT:]

    def harmless(self, alpha: float) -> bool:
        return self.contrary.refutes(alpha)

    def _bet(self, scores: Array, new: Mask) -> None:
        self.harm.bet(self._payoffs(scores, new))

    def _payoffs(self, scores: Array, new: Mask) -> Array:
        """What betting on the state of each request pays, fair if the coin decided alone: on the
        new one for scores above 0, on the old one below, as much as the score."""
        on_new = np.where(new, 1 / self._share, 0.0) - 1
        on_old = np.where(new, 0.0, 1 / (1 - self._share)) - 1
        payoffs: Array = np.where(scores > 0, scores * on_new, -scores * on_old)
        return payoffs

    def _no_more(self, events: Array, new: Mask) -> Array:
        """Fair payoffs if events are more frequent by `margin` (here absolute) on the new state."""
        weighted: Array = np.where(new, -events / self._share, events / (1 - self._share))
        return (weighted + self.margin) / (1 / self._share - self.margin)


class Succession(_Betting):
    """After against before; `before` are values of the old state, each used once.

    "typical" doubts "after / (1 + margin) is the larger of a pair at most half the time", "tail"
    that it exceeds the highest twentieth of before more often than before did, "event" that events
    (values in [0, 1]) are more frequent than (1 + margin) times before, or by `margin` on average.
    """

    test = "betting on pairs"
    confounded = True

    def __init__(self, aspect: Aspect, before: Sequence[float] | Array, margin: float = 0.0):
        super().__init__(bold=aspect == "event")
        known = np.asarray(before, dtype=np.float64)
        self._pairs = np.random.default_rng(len(known)).permutation(known)[:PAIRS]
        self._aspect = aspect
        self._margin = margin
        self._limit = float(np.quantile(known, _TAIL)) if len(known) else 0.0

    def observe(self, values: Array, new: Mask) -> None:
        after = values[new][: len(self._pairs)]
        before, self._pairs = np.split(self._pairs, [len(after)])
        if self._aspect == "event":
            self.harm.bet(_more(after, before, self._margin))
            return
        after = after / (1 + self._margin)
        if self._aspect == "tail":
            worse, better = after > self._limit, before > self._limit
            self.harm.bet(worse.astype(np.float64) - better)
        else:
            self.harm.bet(np.sign(after - before))


class Alongside(_Betting):
    """New against old at the same time, in pairs: of each value that comes, with the newest of the
    other side that has no pair yet. How the values are spread over the sides does not matter.

    Doubts what `Succession` does; `contrary` doubts the contrary, as that of `Concurrent`. In the
    "tail" a value counts that is above the highest twentieth of the last ones, whose side ever.
    """

    test = "betting on pairs side by side"
    confounded = True

    def __init__(self, aspect: Aspect, margin: float = 0.0) -> None:
        super().__init__(bold=aspect == "event")
        self.contrary = Wager()
        self._aspect = aspect
        self._margin = margin
        self._waiting: dict[bool, deque[float]] = {
            side: deque(maxlen=_MOST_WAITING) for side in (False, True)
        }
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def observe(self, values: Array, new: Mask) -> None:
        for at in range(0, len(values), _WARMUP):  # what is high is known from those before
            self._bet(values[at : at + _WARMUP], new[at : at + _WARMUP])

    def _bet(self, values: Array, new: Mask) -> None:
        payoffs: list[float] = []
        contrary: list[float] = []
        high = np.quantile(self._recent, _TAIL) if len(self._recent) >= _WARMUP else None
        for value, side in zip(values.tolist(), new.tolist(), strict=True):
            others = self._waiting[not side]
            if not others:
                self._waiting[side].append(value)
                continue
            other = others.pop()
            after, before = (value, other) if side else (other, value)
            if self._aspect == "event":
                payoffs.append(_more(after, before, self._margin))
                contrary.append((before - after + self._margin) / (1 + self._margin))
                continue
            after /= 1 + self._margin
            if self._aspect == "typical":
                worse = float(np.sign(after - before))
            elif high is None:
                continue
            else:
                worse = float(after > high) - float(before > high)
            payoffs.append(worse)
            contrary.append(-worse)
        self._recent.extend(np.where(new, values / (1 + self._margin), values).tolist())
        self.harm.bet(np.array(payoffs))
        self.contrary.bet(np.array(contrary))

    def harmless(self, alpha: float) -> bool:
        return self.contrary.refutes(alpha)


class Objective(_Betting):
    """The new state alone: doubts "at most `allowed` of the values are above `limit`".

    Without a limit the values are themselves in [0, 1], and their mean is at most `allowed`.
    """

    test = "betting on a share"
    confounded = False

    def __init__(self, allowed: float, limit: float | None = None) -> None:
        super().__init__(bold=False)
        self._allowed = allowed
        self.limit = limit

    def observe(self, values: Array, new: Mask) -> None:
        own = values[new]
        bad = own if self.limit is None else (own > self.limit).astype(np.float64)
        self.harm.bet(bad / self._allowed - 1)


class Ceiling:
    """Harm is `run` values in a row above the limit: no chance is computed, none is claimed.

    The values of a gauge depend on each other, so that no test of their mean holds.
    """

    test = "in a row above the limit"
    confounded = True

    def __init__(self, limit: float, run: int) -> None:
        self.limit: float | None = limit
        self._most = limit
        self._needed = run
        self._run = 0
        self._longest = 0

    @property
    def statistic(self) -> float:
        return float(self._longest)

    def observe(self, values: Array, new: Mask) -> None:
        for over in values[new] > self._most:
            self._run = self._run + 1 if over else 0
            self._longest = max(self._longest, self._run)

    def harmful(self, alpha: float) -> bool:
        return self._longest >= self._needed

    def harmless(self, alpha: float) -> bool:
        return False


def _more(after: Values, before: Values, margin: float) -> Values:
    """Fair payoffs if events are more frequent afterwards by `margin`: -1 at the least, by scale.
    Cut off there they would pay on average where nothing is wrong."""
    return (after - before - margin) / (1 + margin)
