"""Values of one metric, summed up over a span of time and of seqs; and how they are asked for."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from weightledger.ledger.monitoring.deciding.wagers import Array
from weightledger.ledger.monitoring.samples import Source
from weightledger.ledger.monitoring.sketches import Sketch


@dataclass(frozen=True, slots=True)
class Rollup:
    """What is known of the values of one metric from one source.

    All were observed at `first_seq` to `last_seq`, the same where only one state was live, and in
    `[start_us, end_us)`, microseconds since 1970. `total` and `squares` are the sums of the values
    and of their squares. `replica` is who served, where a replica did; `rollout` is the seq that
    began the rollout which it knew to run meanwhile.
    """

    metric: str
    source: Source
    first_seq: int
    last_seq: int
    start_us: int
    end_us: int
    count: int
    total: float
    squares: float
    least: float
    most: float
    sketch: Sketch
    replica: str | None = None
    rollout: int | None = None

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def variance(self) -> float:
        """Of the values, with n − 1; NaN for one value alone."""
        if self.count < 2:
            return math.nan
        return max(0.0, self.squares - self.total * self.mean) / (self.count - 1)

    def quantile(self, fraction: float) -> float:
        """The value that this fraction of all values is at or below, within 1 % of itself."""
        value = self.sketch.quantile(fraction)
        assert value is not None, "a rollup has at least one value"
        return min(max(value, self.least), self.most)

    def over(self, limit: float) -> int:
        """How many values are above `limit`; exact but for those within 1 % of it."""
        return self.sketch.over(limit)

    def values(self, most: int) -> Array:
        """The values again, [n] in ascending order, each within 1 %; of more than `most` as many,
        evenly spaced."""
        n = min(self.count, most)
        if self.metric == "failed":
            return (np.arange(n) >= n - round(n * self.mean)).astype(np.float64)
        return np.array([self.quantile((i + 0.5) / n) for i in range(n)])


def rolled_up(
    metric: str, source: Source, seq: int, start_us: int, end_us: int, values: npt.ArrayLike
) -> Rollup:
    """One rollup of at least one finite value, [n]."""
    array = np.asarray(values, dtype=np.float64)
    return Rollup(
        metric,
        source,
        seq,
        seq,
        start_us,
        end_us,
        len(array),
        float(array.sum()),
        float(np.square(array).sum()),
        float(array.min()),
        float(array.max()),
        Sketch.of(array),
    )


def merged(rollups: Iterable[Rollup]) -> Rollup | None:
    """All of them as one, over the whole span of time and seqs; None of none.

    They are of one metric; where sources differ, the first one's stands for all. Of several
    replicas it is of none, and of no rollout.
    """
    listed = list(rollups)
    if not listed:
        return None
    sketch = Sketch()
    for one in listed:
        sketch.merge(one.sketch)
    first = listed[0]
    return Rollup(
        first.metric,
        first.source,
        min(one.first_seq for one in listed),
        max(one.last_seq for one in listed),
        min(one.start_us for one in listed),
        max(one.end_us for one in listed),
        sum(one.count for one in listed),
        math.fsum(one.total for one in listed),
        math.fsum(one.squares for one in listed),
        min(one.least for one in listed),
        max(one.most for one in listed),
        sketch,
        first.replica if len({one.replica for one in listed}) == 1 else None,
    )


@dataclass(frozen=True, slots=True)
class Where:
    """Which rollups are asked for; every condition has to hold, and none means any.

    Those that reach into `[min_seq, max_seq]` and into `[since_us, until_us)` are given whole. With
    `own` only those that no replica is named with.
    """

    metrics: Sequence[str] = ()
    sources: Sequence[Source] = ()
    min_seq: int | None = None
    max_seq: int | None = None
    since_us: int | None = None
    until_us: int | None = None
    replicas: Sequence[str] = ()
    own: bool = False

    def __contains__(self, rollup: Rollup) -> bool:
        return not (
            (self.metrics and rollup.metric not in self.metrics)
            or (self.sources and rollup.source not in self.sources)
            or (self.replicas and rollup.replica not in self.replicas)
            or (self.own and rollup.replica is not None)
            or (self.min_seq is not None and rollup.last_seq < self.min_seq)
            or (self.max_seq is not None and rollup.first_seq > self.max_seq)
            or (self.since_us is not None and rollup.end_us <= self.since_us)
            or (self.until_us is not None and rollup.start_us >= self.until_us)
        )


class MetricsReader(Protocol):
    """Metrics of one model over a range of seqs and times, whoever measured them."""

    def rollups(self, where: Where) -> list[Rollup]:
        """What was measured, oldest first; what is not written yet is among it.

        Nothing measured is an empty list, and never a zero. StorageError when the database does
        not answer.
        """

    def summary(self, metric: str, where: Where) -> Rollup | None:
        """All rollups of a metric as one; None when nothing was measured."""
