"""Collecting what is measured, without anybody waiting for it.

A request that ends leaves one tuple in a queue. A thread of its own takes them out a few times a
second, tells who listens, and sums them up by spans of ten seconds and by seq; each span is written
once it is over, in one small transaction. Nothing is written while nothing is measured.

What waits to be written is bounded. When the database is away, the newest spans are kept and the
oldest forgotten, which is counted, logged and part of every answer.
"""

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, TypeVar

from weightledger.ledger.monitoring.condensing import MOST_RANGES, SECOND_US, SPAN_US, condensed
from weightledger.ledger.monitoring.process import device_memory_mb, memory_usage_mb
from weightledger.ledger.monitoring.rollups import Rollup, Where, rolled_up
from weightledger.ledger.monitoring.samples import Inference, Listener, Outcome, Sample, Source
from weightledger.ledger.monitoring.stored import StoredMetrics, summary_of
from weightledger.ledger.monitoring.traffic import Traffic

logger = logging.getLogger(__name__)

TICK_S = 0.25
_GAUGE_S = 1.0
_TIDY_S = 600.0

MOST_ARRIVED = 65_536
"""Inferences that wait for the thread; those that end while it is this many are only counted."""

MOST_ROLLUPS = 4096
"""Rollups that wait for the database."""

_Arrived: TypeAlias = tuple[int, int, float, Outcome, float | None, int | None, int | None]
"""The fields of an `Inference`, in its order."""
_AT_US: Final = 1
_LATENCY_MS: Final = 2
_OUTCOME: Final = 3
_QUEUE_MS: Final = 4
_ITEMS: Final = 5

_MOST_VALUES = 16_384  # of one metric, before they are rolled up within their span

T = TypeVar("T")

SampleListener = Callable[[Sequence[Sample]], None]
"""Is told single values, as `samples.Listener` is told inferences."""


@dataclass(frozen=True, slots=True)
class Health:
    """What became of what was measured: rollups that wait, values that were lost, why the last
    write failed (None when it did not), and why a driven server's own figures could not be read."""

    waiting: int
    lost: int
    fault: str | None
    server_fault: str | None = None


class Collector:
    """What is measured of one model in this process; with the rest from the database, its reader.

    Until `store_in` is called nothing is written, and what is not older than a span is all there
    is. Safe to use from any thread. The threads start with the first value.
    """

    def __init__(self) -> None:
        self._stored: StoredMetrics | None = None
        self._keep_us = 0
        self._arrived: deque[_Arrived] = deque()
        self._lock = threading.Lock()  # around what is summed up
        self._writing = threading.Lock()  # around what moves from here to the database
        self._starting = threading.Lock()
        self._traffic = Traffic(time.monotonic())
        self._spans: dict[tuple[int, str, Source], _Span] = {}
        self._waiting: list[Rollup] = []
        self._untold: tuple[list[Inference], list[Sample]] = ([], [])
        self._listeners: list[Listener] = []
        self._sample_listeners: list[SampleListener] = []
        self._since_gauges: dict[int, int] = {}  # how many ended, by seq
        self._lost = 0
        self._fault: str | None = None
        self.server_fault: str | None = None  # whoever reads a driven server's figures says so here
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()

    def store_in(self, stored: StoredMetrics, keep_s: float) -> None:
        """Write what is measured from now on there, and keep it for that long."""
        self._stored, self._keep_us = stored, int(keep_s * SECOND_US)

    # What is measured

    def record(
        self,
        seq: int,
        latency_ms: float,
        outcome: Outcome = "ok",
        queue_ms: float | None = None,
        items: int | None = None,
        unit: int | None = None,
    ) -> None:
        """Count one inference that ended just now; see `samples.Inference`."""
        if len(self._arrived) >= MOST_ARRIVED:
            self._lost += 1
            return
        now_us = time.time_ns() // 1000
        # A tuple, not yet an Inference: that takes ten times as long, and somebody waits here.
        self._arrived.append((seq, now_us, latency_ms, outcome, queue_ms, items, unit))
        if not self._threads:
            self._start()

    def add(self, samples: Sequence[Sample]) -> None:
        """Take values in that something in this process has measured."""
        with self._lock:
            self._add(samples)
        self._start()

    def add_rollups(self, rollups: Sequence[Rollup]) -> None:
        """Take in what was summed up elsewhere."""
        with self._lock:
            self._waiting += rollups
        self._start()

    def push(self, samples: Sequence[tuple[Sample, str | None]]) -> list[bool]:
        """See `StoredMetrics.push`: durable when it returns, and told to who listens."""
        if self._stored is None:
            self.add([one for one, _ in samples])
            return [True] * len(samples)
        fresh = self._stored.push(samples)
        with self._lock:
            self._untold[1].extend(
                one for (one, _), is_new in zip(samples, fresh, strict=True) if is_new
            )
        self._start()
        return fresh

    def shown(self, seq: int) -> None:
        """Another state is live, from now on."""
        with self._lock:
            self._take_in()
            self._traffic.shown(seq, time.monotonic())

    def subscribe(self, listener: Listener) -> None:
        """Have `listener` told every inference."""
        self._listeners.append(listener)

    def subscribe_samples(self, listener: SampleListener) -> None:
        """Have `listener` told every single value: gauges, scores, what was pushed."""
        self._sample_listeners.append(listener)

    # What is known

    def recent(self, seq: int) -> dict[str, float]:
        """`latency_ms` and `throughput` of one state in the last minute; absent if unknown."""
        with self._lock:
            self._take_in()
            return self._traffic.metrics(seq, time.monotonic())

    def rollups(self, where: Where) -> list[Rollup]:
        """See `rollups.MetricsReader`."""
        with self._writing:
            stored = self._stored.rollups(where) if self._stored is not None else []
            with self._lock:
                self._take_in()
                fresh = [*self._waiting, *self._rolled(None)]
        told = [*stored, *(one for one in fresh if one in where)]
        return sorted(told, key=lambda one: (one.start_us, one.first_seq, one.metric, one.source))

    def summary(self, metric: str, where: Where) -> Rollup | None:
        """See `rollups.MetricsReader`."""
        return summary_of(self.rollups(replace(where, metrics=[metric])), metric)

    @property
    def health(self) -> Health:
        """Whether what is measured gets to the database."""
        return Health(len(self._waiting), self._lost, self._fault, self.server_fault)

    # The thread

    def close(self) -> None:
        """Write what there is, and end the thread."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.tick()
        self._write(None)

    def tick(self) -> None:
        """Take in what arrived, and tell who listens."""
        with self._lock:
            self._take_in()
            inferences, samples = self._untold
            self._untold = ([], [])
        _tell(self._listeners, inferences)
        _tell(self._sample_listeners, samples)

    def gauge(self, elapsed_s: float) -> None:
        """Measure memory and throughput, if there was any traffic since the last call."""
        with self._lock:
            ended, self._since_gauges = self._since_gauges, {}
            if not ended:
                return
            *others, seq = ended
            at_us = time.time_ns() // 1000
            values = {"memory_usage_mb": memory_usage_mb(), "device_memory_mb": device_memory_mb()}
            if not others:
                values["throughput"] = ended[seq] / elapsed_s
            self._add(
                [
                    Sample(metric, value, at_us, seq, "engine")
                    for metric, value in values.items()
                    if value is not None
                ]
            )

    def flush(self) -> None:
        """Write every span but the one that is now."""
        self._write(time.time_ns() // 1000 // SPAN_US * SPAN_US)

    def tidy(self) -> None:
        """Make what is stored fewer rows as it gets older, and drop what is too old."""
        if self._stored is None:
            return
        try:
            self._stored.tidy(time.time_ns() // 1000, self._keep_us)
        except Exception as error:  # noqa: BLE001  (the next one goes on where this one stopped)
            logger.warning("old metrics stay as they are for now: %s", error)

    def _start(self) -> None:
        with self._starting:
            if self._threads or self._stop.is_set():
                return
            for name, work in (("metrics", _collect), ("metrics-writer", _keep)):
                thread = threading.Thread(
                    target=work,
                    args=(weakref.ref(self), self._stop),
                    name=f"ledger-{name}",
                    daemon=True,
                )
                thread.start()
                self._threads.append(thread)

    # Under the lock

    def _take_in(self) -> None:
        """Everything that arrived, in the order it did."""
        arrived = self._arrived
        batch = [arrived.popleft() for _ in range(len(arrived))]
        if not batch:
            return
        if self._listeners:
            self._untold[0].extend(map(Inference._make, batch))
        now = time.monotonic()
        for (seq, start_us), group in _groups(batch).items():
            good = [one for one in group if one[_OUTCOME] == "ok"]
            self._since_gauges[seq] = self._since_gauges.pop(seq, 0) + len(group)
            failed = [0.0] * len(good) + [1.0] * (len(group) - len(good))
            self._span(start_us, "failed").add(seq, failed)
            # How soon a request failed is not how fast the model is.
            latencies = [one[_LATENCY_MS] for one in good]
            self._traffic.add(seq, len(good), sum(latencies), now)
            queues = [queue_ms for one in good if (queue_ms := one[_QUEUE_MS]) is not None]
            items = [float(count) for one in good if (count := one[_ITEMS]) is not None]
            for metric, values in (
                ("latency_ms", latencies),
                ("queue_ms", queues),
                ("items", items),
            ):
                if values:
                    self._span(start_us, metric).add(seq, values)

    def _add(self, samples: Sequence[Sample]) -> None:
        for one in samples:
            start_us = one.at_us // SPAN_US * SPAN_US
            self._span(start_us, one.metric, one.source).add(one.seq, [one.value])
        self._untold[1].extend(samples)

    def _span(self, start_us: int, metric: str, source: Source = "engine") -> "_Span":
        key = (start_us, metric, source)
        span = self._spans.get(key)
        if span is None:
            span = self._spans[key] = _Span(start_us, metric, source)
        return span

    def _rolled(self, but_us: int | None) -> list[Rollup]:
        """The spans, but for those that begin at a time, summed up."""
        return [
            one
            for (start_us, _, _), span in self._spans.items()
            if start_us != but_us
            for one in span.rolled()
        ]

    # Under `_writing`

    def _write(self, but_us: int | None) -> None:
        """Write the spans that do not begin at a time; what fails is kept, within bounds.

        Not those before it: a clock that was set back would keep what came before from it.
        """
        with self._writing:
            with self._lock:
                self._take_in()
                self._waiting += self._rolled(but_us)
                self._spans = {k: span for k, span in self._spans.items() if k[0] == but_us}
                waiting = list(self._waiting)
            if not waiting:
                return
            if self._stored is not None:
                try:
                    self._stored.write(waiting)
                except Exception as error:  # noqa: BLE001  (whatever it is, requests go on)
                    self._failed(error)
                    return
            with self._lock:
                del self._waiting[: len(waiting)]
        if self._fault is not None:
            self._fault = None
            logger.warning("metrics are written again; %d values were lost so far", self._lost)

    def _failed(self, error: Exception) -> None:
        with self._lock:
            excess = max(0, len(self._waiting) - MOST_ROLLUPS)
            self._lost += sum(one.count for one in self._waiting[:excess])
            del self._waiting[:excess]
            kept = len(self._waiting)
        if self._fault is None or excess:
            logger.error(
                "metrics cannot be written: %s; %d rollups are kept, %d values were lost so far",
                error,
                kept,
                self._lost,
            )
        self._fault = str(error)


class _Span:
    """The values of one metric from one source in one span of time, by seq."""

    __slots__ = ("_count", "_done", "_metric", "_source", "_start_us", "_values")

    def __init__(self, start_us: int, metric: str, source: Source) -> None:
        self._start_us, self._metric, self._source = start_us, metric, source
        self._values: dict[int, list[float]] = {}
        self._done: list[Rollup] = []
        self._count = 0

    def add(self, seq: int, values: list[float]) -> None:
        known = self._values.get(seq)
        if known is None:
            self._values[seq] = values
        else:
            known += values
        self._count += len(values)
        if self._count >= _MOST_VALUES:
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
            values = [value for seq in part for value in self._values[seq]]
            one = rolled_up(self._metric, self._source, part[0], self._start_us, end_us, values)
            fresh.append(replace(one, last_seq=part[-1]))
        return condensed([*self._done, *fresh], self._start_us, end_us) if self._done else fresh


def _groups(batch: list[_Arrived]) -> dict[tuple[int, int], list[_Arrived]]:
    """What arrived by seq and the start of its span of time, in the order of their last ones."""
    seq, at_us, *_ = batch[-1]
    start_us = at_us // SPAN_US * SPAN_US
    if batch[0][_AT_US] >= start_us and len({one[0] for one in batch}) == 1:
        return {(seq, start_us): batch}  # as nearly always
    groups: dict[tuple[int, int], list[_Arrived]] = {}
    for one in batch:
        key = (one[0], one[_AT_US] // SPAN_US * SPAN_US)
        group = groups.pop(key, [])
        group.append(one)
        groups[key] = group
    return groups


def _tell(listeners: Iterable[Callable[[Sequence[T]], None]], told: Sequence[T]) -> None:
    if not told:
        return
    for listener in listeners:
        try:
            listener(told)
        except Exception:
            logger.exception("a listener to measurements failed")


Held = weakref.ReferenceType[Collector]


def _collect(held: Held, stop: threading.Event) -> None:
    """Look again and again, until the collector is closed or nobody has it any more."""
    gauged = time.monotonic()
    while not stop.wait(TICK_S) and (collector := held()) is not None:
        try:
            collector.tick()
            now = time.monotonic()
            if now - gauged >= _GAUGE_S:
                collector.gauge(now - gauged)
                gauged = now
        except Exception:
            logger.exception("measurements are collected again in a moment")
        del collector


def _keep(held: Held, stop: threading.Event) -> None:
    """Write again and again; apart from `_collect`, which no slow database is to hold up."""
    tidied = time.monotonic() - _TIDY_S  # the first time soon after the start
    while not stop.wait(SPAN_US / SECOND_US) and (collector := held()) is not None:
        collector.flush()
        if time.monotonic() - tidied >= _TIDY_S:
            collector.tidy()
            tidied = time.monotonic()
        del collector
