"""Rollups in the ledger's database: written, pushed, read, and made fewer as they get older."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import cast

from weightledger.ledger.monitoring.condensing import SPAN_US, WIDER, condensed
from weightledger.ledger.monitoring.rollups import Rollup, Where, merged, rolled_up
from weightledger.ledger.monitoring.samples import Sample, Source
from weightledger.ledger.monitoring.sketches import Sketch
from weightledger.ledger.store.metric_rows import MetricRow, MetricStore

_SPANS_AT_A_TIME = 100


class StoredMetrics:
    """The rollups of one model in a store. Safe to use from any thread."""

    def __init__(self, store: MetricStore) -> None:
        self._store = store

    def write(self, rollups: Iterable[Rollup]) -> None:
        """Make rollups durable, all of them or none."""
        self._store.add([_row(one) for one in rollups])

    def push(self, samples: Sequence[tuple[Sample, str | None]]) -> list[bool]:
        """Make samples durable, each with the id it was pushed under; gives which of them are new.

        One that has an id is the same as another of its metric with that id: a request has one id
        and several metrics. One without is the same as one of another push that is equal and has
        as many equals before it in its push. A sample counts once, however often and by whatever
        process it is pushed.
        """
        told: Counter[Sample] = Counter()
        digests = []
        for sample, sample_id in samples:
            digests.append((_digest(sample, sample_id, told[sample]), sample.at_us))
            told[sample] += sample_id is None

        def rows(fresh: Sequence[bool]) -> list[MetricRow]:
            new = [one for (one, _), is_new in zip(samples, fresh, strict=True) if is_new]
            return [_row(one) for one in spans_of(new)]

        return self._store.push(digests, rows)

    def rollups(self, where: Where) -> list[Rollup]:
        """See `rollups.MetricsReader`."""
        rows = self._store.select(
            where.metrics,
            where.sources,
            min_seq=where.min_seq,
            max_seq=where.max_seq,
            since_us=where.since_us,
            until_us=where.until_us,
            replicas=where.replicas,
            own=where.own,
        )
        return [_rollup(row) for row in rows]

    def of_rollout(
        self, started_seq: int, metrics: Sequence[str], after: int
    ) -> list[tuple[int, Rollup]]:
        """What replicas measured while they knew a rollout to run, behind a row: in the order it
        was written, each with its row."""
        rows = self._store.of_rollout(started_seq, metrics, after)
        return [(number, _rollup(row)) for number, row in rows]

    def summary(self, metric: str, where: Where) -> Rollup | None:
        """See `rollups.MetricsReader`."""
        return summary_of(self.rollups(where), metric)

    def tidy(self, now_us: int, keep_us: int) -> int:
        """Make older spans wider and forget what is older than `keep_us`; how many rows went in.

        Stopped in between, the next call goes on.
        """
        done = self._store.drop(now_us - keep_us)
        for width_us, age_us in WIDER:
            for start_us in self._store.spans(width_us, now_us - age_us, _SPANS_AT_A_TIME):
                done += self._store.merge(start_us, width_us, partial(_wider, width_us))
        return done


def summary_of(rollups: Iterable[Rollup], metric: str) -> Rollup | None:
    """All rollups of a metric as one."""
    return merged(one for one in rollups if one.metric == metric)


def spans_of(samples: Iterable[Sample]) -> list[Rollup]:
    """Samples, rolled up by span of time, metric, source, seq and replica."""
    groups: dict[tuple[int, str, Source, int, str | None], list[float]] = {}
    for one in samples:
        key = (one.at_us // SPAN_US * SPAN_US, one.metric, one.source, one.seq, one.replica)
        groups.setdefault(key, []).append(one.value)
    return [
        replace(rolled_up(metric, source, seq, start, start + SPAN_US, values), replica=replica)
        for (start, metric, source, seq, replica), values in groups.items()
    ]


def _wider(width_us: int, rows: list[MetricRow]) -> list[MetricRow]:
    start_us = rows[0].start_us // width_us * width_us
    whole = condensed(map(_rollup, rows), start_us, start_us + width_us)
    return [_row(one) for one in whole]


def _digest(sample: Sample, sample_id: str | None, before: int) -> bytes:
    """What a sample is known by; `before` is how many equal ones of its push came first."""
    if sample_id is not None:
        return sha256(f"id\0{sample.metric}\0{sample_id}".encode()).digest()[:16]
    facts: tuple[object, ...]
    facts = (sample.metric, sample.value, sample.at_us, sample.seq, sample.source)
    if sample.replica is not None:
        facts = (*facts, sample.replica)
    if before:
        facts = (*facts, before)
    return sha256("\0".join(map(repr, facts)).encode()).digest()[:16]


def _row(one: Rollup) -> MetricRow:
    return MetricRow(
        one.metric,
        one.source,
        one.first_seq,
        one.last_seq,
        one.start_us,
        one.end_us,
        one.count,
        one.total,
        one.squares,
        one.least,
        one.most,
        one.sketch.encode(),
        one.replica,
        one.rollout,
    )


def _rollup(row: MetricRow) -> Rollup:
    return Rollup(
        row.metric,
        cast(Source, row.source),
        row.first_seq,
        row.last_seq,
        row.start_us,
        row.end_us,
        row.samples,
        row.total,
        row.squares,
        row.least,
        row.most,
        Sketch.decode(row.sketch),
        row.replica,
        row.rollout,
    )
