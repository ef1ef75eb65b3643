"""The search with a judge that errs: a posterior over the steps, and the probe that tells most.

One of n steps made the model bad, each as likely as the others before anything is judged. A good
state is called bad with probability f, a bad one good with probability m. Where both rates are
known to be r, Bayes' rule needs no more; where they are not, each has a Beta prior, and since it is
conjugate the likelihood of a step is a ratio of Beta functions of the counts on each side of it.
The next probe is the one whose verdict is expected to take most from the entropy of the posterior
(Horstein 1963 for a known rate, where that is the posterior's median; Jedynak, Frazier & Sznitman
2012). States may be judged again and again.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.errors import InvalidRequest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PRIOR = (1.0, 4.0)
"""The Beta prior of a rate that is not known: 0.2 on average, hardly above one half."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps that no verdict tells apart, the first and the last of them, and the probability that
    one of them is to blame."""

    first: int
    last: int
    probability: float

    @property
    def steps(self) -> int:
        return self.last - self.first + 1


class Posterior:
    """What is known of n steps; states are numbered 0 (before all steps) to n (after all).

    `rate` is how often the judge errs, above 0 and below 0.5; None has it learnt.
    """

    def __init__(self, steps: int, rate: float | None = None) -> None:
        if rate is not None and not 0 < rate < 0.5:
            raise InvalidRequest(
                f"a judge that errs does so with a rate above 0 and below 0.5, got {rate}",
                param="noisy",
            )
        self.steps = steps
        self.rate = rate
        self._goods = np.zeros(steps + 1, np.int64)
        self._bads = np.zeros(steps + 1, np.int64)
        self._probabilities: Floats | None = None

    def observe(self, place: int, *, bad: bool) -> None:
        """A verdict on a state."""
        (self._bads if bad else self._goods)[place] += 1
        self._probabilities = None

    @property
    def probabilities(self) -> Floats:
        """Of each step the probability that it is the one; [k - 1] is that of step k."""
        if self._probabilities is None:
            likelihood = self._log_likelihood()
            weights = np.exp(likelihood - likelihood.max())
            self._probabilities = weights / weights.sum()
        return self._probabilities

    @property
    def best(self) -> tuple[int, float]:
        """The likeliest step, 1 to n, and its probability."""
        step = int(self.probabilities.argmax())
        return step + 1, float(self.probabilities[step])

    def likeliest(self, skipped: Collection[int] = ()) -> Stretch:
        """The likeliest stretch of steps between states that can be judged.

        A step by itself, but where the states beside it are `skipped`: then nothing that could be
        judged would ever say which one of its stretch it is.
        """
        # A step follows each state but the last one; the first is where the first stretch begins.
        starts = np.setdiff1d(np.arange(self.steps), [place for place in skipped if place])
        chances = np.add.reduceat(self.probabilities, starts)
        place = int(chances.argmax())
        ends = np.append(starts[1:], self.steps)
        return Stretch(int(starts[place]) + 1, int(ends[place]), float(chances[place]))

    @property
    def entropy_bits(self) -> float:
        """How much is left to find out: log2 n at first, 0 when a step is certain."""
        known = self.probabilities[self.probabilities > 0]
        return float(-(known * np.log2(known)).sum())

    def gain(self) -> Floats:
        """Of each state, 0 to n, by how many bits a verdict on it is expected to lower the
        entropy."""
        called_bad_before, called_bad_after = self._called_bad()
        chances = self.probabilities
        # A state at `place` is bad if the step is one of the first `place`.
        bad = _summed(chances * called_bad_after)
        good = _summed(chances * called_bad_before)
        said = bad + (good[-1] - good)
        doubt_bad = _summed(chances * _entropy(called_bad_after))
        doubt_good = _summed(chances * _entropy(called_bad_before))
        gain: Floats = _entropy(said) - (doubt_bad + (doubt_good[-1] - doubt_good))
        return gain

    def probes(self, most: int, skipped: Collection[int] = ()) -> list[int]:
        """Up to `most` states to judge next, in order; none where no verdict would tell anything.

        Several at once cut the posterior into equal parts, as one cuts it in two.
        """
        gain = self.gain()
        gain[list(skipped)] = 0.0
        if self.rate is not None:
            gain[[0, -1]] = 0.0  # by reckoning; what is computed is off by a rounding
        place = int(gain.argmax())
        if gain[place] <= 0:
            return []
        if most == 1:
            return [place]
        chosen = [place] if place in (0, self.steps) else []
        reached = _summed(self.probabilities)
        places = np.flatnonzero(gain > 0)
        parts = most - len(chosen)
        for part in range(1, parts + 1):
            off = np.abs(reached[places] - part / (parts + 1))
            chosen.append(int(places[off.argmin()]))
        return sorted(chosen)

    def _counts(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Of each step the verdicts good and bad before it, and good and bad after it."""
        goods, bads = np.cumsum(self._goods), np.cumsum(self._bads)
        before_goods, before_bads = goods[:-1], bads[:-1]
        return before_goods, before_bads, goods[-1] - before_goods, bads[-1] - before_bads

    def _log_likelihood(self) -> Floats:
        goods_before, bads_before, goods_after, bads_after = self._counts()
        likelihood: Floats
        if self.rate is not None:
            wrong, right = math.log(self.rate), math.log1p(-self.rate)
            likelihood = (bads_before + goods_after) * wrong + (goods_before + bads_after) * right
        else:
            likelihood = _log_beta(bads_before, goods_before) + _log_beta(goods_after, bads_after)
        return likelihood

    def _called_bad(self) -> tuple[Floats, Floats]:
        """Of each step, if it is the one: how likely a state before it is called bad, and one
        after it."""
        if self.rate is not None:
            ones = np.ones(self.steps)
            return ones * self.rate, ones * (1 - self.rate)
        a, b = PRIOR
        goods_before, bads_before, goods_after, bads_after = self._counts()
        false_alarms: Floats = (bads_before + a) / (bads_before + goods_before + a + b)
        misses: Floats = (goods_after + a) / (goods_after + bads_after + a + b)
        return false_alarms, 1 - misses


def _summed(values: Floats) -> Floats:
    """Sums of the first 0, 1 … n values."""
    return np.concatenate(([0.0], np.cumsum(values)))


def _entropy(chance: Floats) -> Floats:
    """Of a yes that has this probability, in bits."""
    p = np.clip(chance, 1e-300, 1.0)
    q = np.clip(1 - chance, 1e-300, 1.0)
    bits: Floats = -(p * np.log2(p) + q * np.log2(q))
    return bits


def _log_beta(errors: Ints, others: Ints) -> Floats:
    """ln B(a + errors, b + others), from tables: counts are few, and many times the same."""
    a, b = PRIOR
    most = int(errors.max() + others.max()) + 1
    of_a, of_b, of_both = (
        np.array([math.lgamma(count + shift) for count in range(most)]) for shift in (a, b, a + b)
    )
    log: Floats = of_a[errors] + of_b[others] - of_both[errors + others]
    return log
