"""What was measured lately, summed up by spans of ten seconds and by seq, before it is written."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from weightledger.ledger.monitoring.condensing import MOST_RANGES, SPAN_US, condensed
from weightledger.ledger.monitoring.deciding.wagers import Array
from weightledger.ledger.monitoring.rollups import Rollup, rolled_up
from weightledger.ledger.monitoring.samples import Inferences, Sample, Source

_Key = tuple[int, str, Source, str | None]

MOST_VALUES = 16_384
"""Values of one metric, before they are rolled up within their span."""


class Spans:
    """Values by span, metric, source, replica and seq. Not safe to use from several threads."""

    def __init__(self) -> None:
        self._spans: dict[_Key, _Span] = {}

    def add(self, seq: int, told: Inferences, *, replica: str | None = None) -> None:
        """Take in what requests to one state were like.

        Of a replica, also how much each got done while it was served, which says more of a state
        than how many requests came.
        """
        start_us = told.at_us // SPAN_US * SPAN_US
        ok = told.ok
        self._of(start_us, "failed", replica=replica).add(seq, (~ok).astype(np.float64))
        good = told.where(ok)  # how soon a request failed is not how fast the model is
        series = {
            "latency_ms": good.latency_ms,
            "queue_ms": good.queue_ms[~np.isnan(good.queue_ms)],
            "items": good.items[good.items >= 0].astype(np.float64),
        }
        if replica is not None:
            series["items_per_second"] = good.items_per_second
        for metric, values in series.items():
            if len(values):
                self._of(start_us, metric, replica=replica).add(seq, values)

    def add_samples(self, samples: Sequence[Sample]) -> None:
        """Take in single values."""
        for one in samples:
            start_us = one.at_us // SPAN_US * SPAN_US
            span = self._of(start_us, one.metric, one.source, one.replica)
            span.add(one.seq, np.array([one.value]))

    def rolled(self, but_us: int | None = None) -> list[Rollup]:
        """All of it, but for the spans that begin at a time."""
        return [
            one for key, span in self._spans.items() if key[0] != but_us for one in span.rolled()
        ]

    def keep(self, start_us: int | None) -> None:
        """Forget all spans but those that begin at a time."""
        self._spans = {key: span for key, span in self._spans.items() if key[0] == start_us}

    def _of(
        self, start_us: int, metric: str, source: Source = "engine", replica: str | None = None
    ) -> "_Span":
        key = (start_us, metric, source, replica)
        span = self._spans.get(key)
        if span is None:
            span = self._spans[key] = _Span(*key)
        return span


class _Span:
    """The values of one metric from one source in one span of time, by seq."""

    __slots__ = ("_count", "_done", "_metric", "_replica", "_source", "_start_us", "_values")

    def __init__(self, start_us: int, metric: str, source: Source, replica: str | None) -> None:
        self._start_us, self._metric, self._source = start_us, metric, source
        self._replica = replica
        self._values: dict[int, list[Array]] = {}
        self._done: list[Rollup] = []
        self._count = 0

    def add(self, seq: int, values: Array) -> None:
        self._values.setdefault(seq, []).append(values)
        self._count += len(values)
        if self._count >= MOST_VALUES:
            self._done = self.rolled()
            self._values, self._count = {}, 0

    def rolled(self) -> list[Rollup]:
        """At most `MOST_RANGES` rollups of all values so far."""
        end_us = self._start_us + SPAN_US
        seqs = sorted(self._values)
        size = max(1, -(-len(seqs) // MOST_RANGES))
        fresh = []
        for at in range(0, len(seqs), size):
            part = seqs[at : at + size]
            values = np.concatenate([one for seq in part for one in self._values[seq]])
            one = rolled_up(self._metric, self._source, part[0], self._start_us, end_us, values)
            fresh.append(replace(one, last_seq=part[-1], replica=self._replica))
        return condensed([*self._done, *fresh], self._start_us, end_us) if self._done else fresh
