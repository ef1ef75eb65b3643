"""What a panel was told, and what it showed by and by: the picture of a trial while it runs.

A decider that keeps the batches it takes. Bounds cost more than deciding does, so they are worked
out when somebody looks, from where the last look ended.
"""

import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from weightledger.ledger.monitoring.deciding.comparisons import Aspect, Concurrent, Mask
from weightledger.ledger.monitoring.deciding.dealing import Times
from weightledger.ledger.monitoring.deciding.deciders import Panel, Ruling, Watched, cost
from weightledger.ledger.monitoring.deciding.intervals import Interval, Scale
from weightledger.ledger.monitoring.deciding.wagers import Array

MOST_VALUES = 50_000
"""Values of one metric that are kept; the picture ends there, the decision does not."""

MOST_POINTS = 100

_TAIL = 95


@dataclass(frozen=True, slots=True)
class ChroniclePoint:
    """What was known at a moment, in microseconds since 1970, after so many values of each side.

    `estimate` is by how much the new state is worse, `lower` and `upper` bound it, None while
    unknown; `statistic` is the test's own.
    """

    at_us: int
    n_old: int
    n_new: int
    estimate: float | None
    lower: float | None
    upper: float | None
    statistic: float


@dataclass(frozen=True, slots=True)
class Series:
    """One test of a metric, over time, oldest first.

    Of `metric` the `aspect` is compared, on this `scale`. Harm is more than `limit`, shown when the
    statistic reaches `needed`, 1 / `alpha`. `whole`: later values are part of it, too.
    """

    metric: str
    aspect: Aspect
    scale: Scale
    limit: float
    alpha: float
    needed: float
    whole: bool
    points: list[ChroniclePoint]


@dataclass(frozen=True, slots=True)
class _Batch:
    at_us: int
    values: Array
    new: Mask
    statistics: tuple[float, ...]


@dataclass(slots=True)
class _Kept:
    """The batches of one metric."""

    tests: list[Watched]
    batches: list[_Batch] = field(default_factory=list)
    values: int = 0


@dataclass(slots=True)
class _Picture:
    """One test as far as it is worked out; every `step`th batch has a point."""

    interval: Interval
    old: list[Array] = field(default_factory=list)
    new: list[Array] = field(default_factory=list)
    points: list[ChroniclePoint] = field(default_factory=list)
    last: ChroniclePoint | None = None
    done: int = 0
    step: int = 1


class Chronicle:
    """A panel with a memory; safe to look at from any thread while another one observes."""

    def __init__(self, panel: Panel, share: float) -> None:
        self._panel = panel
        self._share = share
        self._alpha = panel.alpha / max(len(panel.tests), 1)
        self._kept: dict[str, _Kept] = {}
        for test in panel.tests:
            if isinstance(test.comparison, Concurrent):
                self._kept.setdefault(test.metric, _Kept([])).tests.append(test)
        self._pictures: dict[tuple[str, Aspect], _Picture] = {}
        self._looking = threading.Lock()

    # As the panel

    def observe(self, metric: str, values: Array, new: Mask) -> None:
        """See `Decider`."""
        self._panel.observe(metric, values, new)
        self._keep(metric, values, new)

    def observe_pushed(self, metric: str, values: Array, new: Mask, at_us: Times) -> None:
        """See `Panel.observe_pushed`."""
        self._keep(metric, *self._panel.observe_pushed(metric, values, new, at_us))

    def _keep(self, metric: str, values: Array, new: Mask) -> None:
        kept = self._kept.get(metric)
        if kept is None or kept.values >= MOST_VALUES or not len(values):
            return
        finite = np.isfinite(values)
        statistics = tuple(one.comparison.statistic for one in kept.tests)
        kept.batches.append(
            _Batch(time.time_ns() // 1000, cost(metric, values[finite]), new[finite], statistics)
        )
        kept.values += len(values)

    def ruling(self) -> Ruling:
        """See `Decider`."""
        return self._panel.ruling()

    def lacking(self, named: Collection[str]) -> list[str]:
        """See `Panel.lacking`."""
        return self._panel.lacking(named)

    def seen(self, metric: str, *, new: bool) -> int:
        """See `Panel.seen`."""
        return self._panel.seen(metric, new=new)

    # The picture

    def series(self) -> list[Series]:
        """Every test over time. What is new since the last look costs some 50 µs a request."""
        with self._looking:
            return [one for kept in self._kept.values() for one in self._drawn(kept)]

    def _drawn(self, kept: _Kept) -> Iterator[Series]:
        for number, test in enumerate(kept.tests):
            comparison = test.comparison
            assert isinstance(comparison, Concurrent)
            aspect = comparison.aspect
            limit = 0.0 if aspect == "event" else comparison.margin
            picture = self._pictures.setdefault(
                (test.metric, aspect),
                _Picture(Interval(aspect, self._share, limit, self._alpha, self._panel.alpha)),
            )
            for batch in kept.batches[picture.done : len(kept.batches)]:
                _draw(picture, batch, aspect, batch.statistics[number])
            points = list(picture.points)
            if picture.last is not None and (not points or picture.last != points[-1]):
                points.append(picture.last)
            yield Series(
                test.metric,
                aspect,
                picture.interval.scale,
                limit,
                self._alpha,
                1 / self._alpha,
                kept.values < MOST_VALUES,
                points,
            )


def _draw(picture: _Picture, batch: _Batch, aspect: Aspect, statistic: float) -> None:
    picture.interval.observe(batch.values, batch.new)
    picture.old.append(batch.values[~batch.new])
    picture.new.append(batch.values[batch.new])
    picture.done += 1
    old, new = np.concatenate(picture.old), np.concatenate(picture.new)
    interval = picture.interval
    picture.last = ChroniclePoint(
        batch.at_us,
        len(old),
        len(new),
        _estimate(old, new, aspect),
        interval.lower,
        interval.upper,
        statistic,
    )
    if picture.done % picture.step:
        return
    picture.points.append(picture.last)
    if len(picture.points) >= MOST_POINTS:
        picture.points = picture.points[1::2]
        picture.step *= 2


def _estimate(old: Array, new: Array, aspect: Aspect) -> float | None:
    """By how much the new state is worse, in that aspect."""
    if not len(old) or not len(new):
        return None
    if aspect == "event":
        return float(new.mean() - old.mean())
    percent = _TAIL if aspect == "tail" else 50
    before = float(np.percentile(old, percent))
    return float(np.percentile(new, percent)) / before - 1 if before > 0 else None
