"""Deciders: take what is measured of a new state and an old one, and say what is known of it.

One small protocol, so that the way of deciding can be changed: `benchmarks/monitoring_simulation`
runs ours and those of rollout tools through it.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from weightledger.ledger.monitoring.deciding.comparisons import Comparison, Concurrent, Mask
from weightledger.ledger.monitoring.deciding.dealing import Dealer, Times
from weightledger.ledger.monitoring.deciding.wagers import Array

Known = Literal["harmful", "harmless", "undecided"]


@dataclass(frozen=True, slots=True)
class Ruling:
    """What is known, and from what.

    `statistic` is that of `test` (an e-value: 1/α of it is harm), `alpha` this metric's share of
    the error rate, `before` and `after` are means, `limit` the absolute value that counts as harm.
    `confounded`: the values compared are of different times.
    """

    known: Known
    metric: str | None = None
    test: str | None = None
    baseline: str | None = None
    statistic: float = 0.0
    alpha: float | None = None
    n_before: int = 0
    n_after: int = 0
    before: float | None = None
    after: float | None = None
    limit: float | None = None
    confounded: bool = False

    def evidence(self) -> dict[str, Any]:
        """For an event, as JSON; what is not known is left out."""
        names = ("metric", "test", "baseline", "alpha", "before", "after", "limit")
        facts: dict[str, Any] = {"n_before": self.n_before, "n_after": self.n_after}
        facts |= {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.test is not None:
            facts["statistic"] = float(f"{self.statistic:.6g}")
            facts["confounded"] = self.confounded
        return {
            name: float(f"{value:.9g}") if isinstance(value, float) else value
            for name, value in facts.items()
            if not isinstance(value, float) or math.isfinite(value)
        }

    def __str__(self) -> str:
        if self.metric is None:
            return f"{self.known} after {self.n_after} requests"
        went = ""
        if self.before is not None and self.after is not None:
            went = f" went from {self.before:.6g} to {self.after:.6g}"
        limit = "" if self.limit is None else f", limit {self.limit:.6g}"
        alpha = "" if self.alpha is None else f", alpha {self.alpha:.3g}"
        return (
            f"{self.metric}{went} ({self.test}: {self.statistic:.4g}{alpha}{limit}, "
            f"n {self.n_before} and {self.n_after})"
        )


class Decider(Protocol):
    """Takes values as they come; may be asked at any time."""

    def observe(self, metric: str, values: Array, new: Mask) -> None:
        """Take values of a metric, [n], in the order they came, and which are of the new state."""

    def ruling(self) -> Ruling:
        """What is known by now; "undecided" until it is."""


@dataclass(frozen=True, slots=True)
class Watched:
    """One comparison of a metric with a baseline, as a panel holds it.

    `before` are the mean and the number of what was measured before, where it is not observed.
    `minimum` is how many values it wants, where that is not the panel's.
    """

    metric: str
    comparison: Comparison
    baseline: str = "parent"
    before: tuple[float, int] | None = None
    minimum: int | None = None


@dataclass(slots=True)
class _Seen:
    """How many values of a metric were seen, and their sum."""

    n: int = 0
    total: float = 0.0

    def add(self, values: Array) -> None:
        self.n += len(values)
        self.total += float(values.sum())

    @property
    def mean(self) -> float | None:
        return self.total / self.n if self.n else None


@dataclass(slots=True)
class Panel:
    """Several comparisons under one error rate: `alpha` is split evenly among them.

    Harm is what one of them shows, after `minimum` values of the new state; no harm is what all
    show whose metric is measured. A value that is not finite is harm at once. `share` of the
    requests meet the new state, where both serve at the same time.
    """

    tests: list[Watched]
    alpha: float = 0.01
    minimum: int = 50
    share: float | None = None
    _dealers: dict[str, Dealer] = field(default_factory=dict)
    _seen: dict[tuple[str, bool], _Seen] = field(default_factory=dict)
    _not_finite: str | None = None

    def observe(self, metric: str, values: Array, new: Mask) -> None:
        values, new = self._taken(metric, values, new)
        for test in self.tests:
            if test.metric == metric:
                test.comparison.observe(cost(metric, values), new)

    def observe_pushed(
        self, metric: str, values: Array, new: Mask, at_us: Times
    ) -> tuple[Array, Mask]:
        """`observe` for values, of those times, which the coin of a trial did not spread over its
        sides.

        Gives those that were dealt to the tests of both sides.
        """
        assert self.share is not None, "of a trial"
        at_us = at_us[np.isfinite(values)]
        values, new = self._taken(metric, values, new)
        dealt = self._dealers.setdefault(metric, Dealer(self.share)).deal(values, new, at_us)
        for test in self.tests:
            if test.metric == metric:
                own, side = values, new
                if isinstance(test.comparison, Concurrent):
                    own, side = dealt
                    test.comparison.confounded = True  # they need not be of the same time
                test.comparison.observe(cost(metric, own), side)
        return dealt

    def ruling(self) -> Ruling:
        if self._not_finite is not None:
            return self._ruling("harmful", Watched(self._not_finite, _NotFinite()))
        share = self.alpha / max(len(self.tests), 1)
        for test in self.tests:
            least = self.minimum if test.minimum is None else test.minimum
            if self._count(test.metric) >= least and test.comparison.harmful(share):
                return self._ruling("harmful", test)
        measured = [test for test in self.tests if self._count(test.metric)]
        if measured and all(test.comparison.harmless(self.alpha) for test in measured):
            return self._ruling("harmless", measured[0])
        strongest = max(self.tests, key=lambda one: one.comparison.statistic, default=None)
        if strongest is None:
            return Ruling("undecided")
        return self._ruling("undecided", strongest)

    def lacking(self, named: Collection[str]) -> list[str]:
        """The metrics of which too little is known to say that a new state does no harm: known of
        one side alone; or of less, if they are `named` as those that decide."""
        lacking = []
        for test in self.tests:
            if test.minimum is not None:
                continue  # a gauge, which both states share
            sides = (False, True) if isinstance(test.comparison, Concurrent) else (True,)
            known = [self.seen(test.metric, new=side) for side in sides]
            wanted = test.metric in named or max(known) >= self.minimum
            if wanted and min(known) < self.minimum:
                lacking.append(test.metric)
        return list(dict.fromkeys(lacking))

    def seen(self, metric: str, *, new: bool) -> int:
        """How many values of a metric were seen of that state."""
        return self._seen.get((metric, new), _Seen()).n

    def _taken(self, metric: str, values: Array, new: Mask) -> tuple[Array, Mask]:
        """Those that are numbers, counted."""
        finite = np.isfinite(values)
        if not finite.all():
            if (new & ~finite).any():
                self._not_finite = metric
            values, new = values[finite], new[finite]
        for side in (False, True):
            self._seen.setdefault((metric, side), _Seen()).add(values[new == side])
        return values, new

    def _count(self, metric: str) -> int:
        return self.seen(metric, new=True)

    def _ruling(self, known: Known, test: Watched) -> Ruling:
        comparison = test.comparison
        before = self._seen.get((test.metric, False), _Seen())
        after = self._seen.get((test.metric, True), _Seen())
        mean, n = (before.mean, before.n) if test.before is None else test.before
        return Ruling(
            known,
            test.metric,
            comparison.test,
            test.baseline,
            comparison.statistic,
            self.alpha / max(len(self.tests), 1),
            n,
            after.n,
            mean,
            after.mean,
            comparison.limit,
            comparison.confounded,
        )


class _NotFinite:
    """The hard guard: a value that is no number."""

    test = "not finite"
    confounded = False
    statistic = 1.0
    limit: float | None = None

    def observe(self, values: Array, new: Mask) -> None:
        """Nothing more is to be known."""

    def harmful(self, alpha: float) -> bool:
        return True

    def harmless(self, alpha: float) -> bool:
        return False


_BENEFITS = frozenset({"throughput"})
_SHARES = frozenset({"accuracy"})


def cost(metric: str, values: Array) -> Array:
    """Values turned so that higher is worse: a rate as a time, a share right as one wrong."""
    if metric in _BENEFITS:
        return 1 / np.maximum(values, 1e-12)
    if metric in _SHARES:
        return 1 - values
    return values
