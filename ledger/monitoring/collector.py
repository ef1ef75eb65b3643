"""Collecting what is measured, without anybody waiting for it.

A request that ends leaves a row in a buffer (`intake`). A thread of its own takes the rows out a
few times a second, tells who listens, and sums them up by spans of ten seconds and by seq
(`spans`); each span is written once it is over, in one small transaction (`outbox`). Nothing is
written while nothing is measured.

What waits to be written is bounded. When the database is away, the newest spans are kept and the
oldest forgotten, which is counted, logged and part of every answer.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from weightledger.ledger.monitoring.condensing import SECOND_US, SPAN_US
from weightledger.ledger.monitoring.intake import Intake
from weightledger.ledger.monitoring.outbox import Outbox
from weightledger.ledger.monitoring.process import device_memory_mb, memory_usage_mb
from weightledger.ledger.monitoring.rollups import Rollup, Where
from weightledger.ledger.monitoring.samples import Inferences, Listener, Sample
from weightledger.ledger.monitoring.spans import Spans
from weightledger.ledger.monitoring.stored import StoredMetrics, summary_of
from weightledger.ledger.monitoring.traffic import Traffic

logger = logging.getLogger(__name__)

TICK_S = 0.25
_GAUGE_S = 1.0
_TIDY_S = 600.0
_AWAITED_S = 2.0

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
    is. Safe to use from any thread. The threads start with the first value. Inferences leave
    what they took in `intake`.
    """

    def __init__(self) -> None:
        held = weakref.ref(self)  # a collector that nobody has is gone at once
        self.intake = Intake(lambda: _wake(held))
        self._outbox = Outbox()
        self._keep_us: int | None = None
        self._replica: str | None = None
        self._rollout: int | None = None
        self._lock = threading.Lock()  # around what is summed up
        self._starting = threading.Lock()
        self._traffic = Traffic(time.monotonic())
        self._spans = Spans()
        self._before: list[Rollup] = []  # a rollout began or ended
        self._untold: tuple[list[Inferences], list[Sample]] = ([], [])
        self._listeners: list[Listener] = []
        self._sample_listeners: list[SampleListener] = []
        self._since_gauges: dict[int, int] = {}  # how many ended, by seq
        self.server_fault: str | None = None  # whoever reads a driven server's figures says so here
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()

    def store_in(self, stored: StoredMetrics, keep_s: float | None) -> None:
        """Write what is measured from now on there, and keep it for that long; None: others see to
        that."""
        self._outbox.stored = stored
        self._keep_us = None if keep_s is None else int(keep_s * SECOND_US)

    def serve_as(self, replica: str) -> None:
        """What is measured from now on was served by a replica."""
        self._replica = replica

    def in_rollout(self, started_seq: int | None) -> None:
        """A rollout is known to run from now on, by the seq that began it; None: none is.

        What was measured before is not of it. While one runs somebody waits for what is measured:
        it is written every two seconds. Never waits for the database.
        """
        with self._lock:
            if started_seq != self._rollout:
                self._before += self._taken(None)
                self._rollout = started_seq

    # What is measured

    def add(self, samples: Sequence[Sample]) -> None:
        """Take values in that something in this process has measured."""
        with self._lock:
            self._add(samples)
        self._start()

    def add_rollups(self, rollups: Sequence[Rollup]) -> None:
        """Take in what was summed up elsewhere."""
        self._outbox.waiting.extend(self._ours(rollups))
        self._start()

    def push(self, samples: Sequence[tuple[Sample, str | None]]) -> list[bool]:
        """See `StoredMetrics.push`: durable when it returns, and told to who listens."""
        if self._outbox.stored is None:
            self.add([one for one, _ in samples])
            return [True] * len(samples)
        fresh = self._outbox.stored.push(samples)
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
        with self._outbox.moving:
            told = self._outbox.rollups(where)
            with self._lock:
                self._take_in()
                fresh = (*self._before, *self._ours(self._spans.rolled()))
                told += [one for one in fresh if one in where]
        return sorted(told, key=lambda one: (one.start_us, one.first_seq, one.metric, one.source))

    def summary(self, metric: str, where: Where) -> Rollup | None:
        """See `rollups.MetricsReader`."""
        return summary_of(self.rollups(replace(where, metrics=[metric])), metric)

    @property
    def health(self) -> Health:
        """Whether what is measured gets to the database."""
        outbox = self._outbox
        lost = self.intake.lost + outbox.lost
        return Health(len(outbox.waiting), lost, outbox.fault, self.server_fault)

    # The threads

    def close(self) -> None:
        """Write what there is, and end the threads."""
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
        for batch in inferences:
            _tell(self._listeners, batch)
        if samples:
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
                    Sample(metric, value, at_us, seq, "engine", self._replica)
                    for metric, value in values.items()
                    if value is not None
                ]
            )

    def flush(self) -> None:
        """Write every span but the one that is now; while a rollout runs that, too."""
        now = time.time_ns() // 1000 // SPAN_US * SPAN_US
        self._write(now if self._rollout is None else None)

    @property
    def awaited(self) -> bool:
        """Whether what is measured is to be written soon."""
        return self._rollout is not None

    def tidy(self) -> None:
        """Make what is stored fewer rows as it gets older, and drop what is too old."""
        if self._outbox.stored is None or self._keep_us is None:
            return
        try:
            self._outbox.stored.tidy(time.time_ns() // 1000, self._keep_us)
        except Exception as error:  # noqa: BLE001  (the next one goes on where this one stopped)
            logger.warning("old metrics stay as they are for now: %s", error)

    def _start(self) -> None:
        if self._threads:
            return
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

    def _write(self, but_us: int | None) -> None:
        """Write the spans that do not begin at a time.

        Not those before it: a clock that was set back would keep what came before from it.
        """
        with self._outbox.moving:
            with self._lock:
                fresh = self._taken(but_us)
            self._outbox.write(fresh)

    # Under the lock

    def _taken(self, but_us: int | None) -> list[Rollup]:
        """Take the spans out that do not begin at a time."""
        self._take_in()
        fresh = [*self._before, *self._ours(self._spans.rolled(but_us))]
        self._before.clear()
        self._spans.keep(but_us)
        return fresh

    def _ours(self, rollups: Iterable[Rollup]) -> list[Rollup]:
        """As measured here, and now."""
        if self._replica is None:
            return list(rollups)
        return [
            one
            if one.source == "pushed"
            else replace(one, replica=self._replica, rollout=self._rollout)
            for one in rollups
        ]

    def _take_in(self) -> None:
        """Everything that arrived, in the order it did."""
        told = self.intake.take()
        if told is None:
            return
        if self._listeners:
            self._untold[0].append(told)
        now = time.monotonic()
        for seq, part in told.by_seq():
            self._since_gauges[seq] = self._since_gauges.pop(seq, 0) + len(part)
            self._spans.add(seq, part, replica=self._replica)
            latencies = part.latency_ms[part.ok]
            self._traffic.add(seq, len(latencies), float(latencies.sum()), now)

    def _add(self, samples: Sequence[Sample]) -> None:
        self._spans.add_samples(samples)
        self._untold[1].extend(samples)


def _tell(listeners: Iterable[Callable[[T], None]], told: T) -> None:
    for listener in listeners:
        try:
            listener(told)
        except Exception:
            logger.exception("a listener to measurements failed")


Held = weakref.ReferenceType[Collector]


def _wake(held: Held) -> None:
    if (collector := held()) is not None:
        collector._start()


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
    written = time.monotonic()
    tidied = written - _TIDY_S  # the first time soon after the start
    while not stop.wait(_AWAITED_S) and (collector := held()) is not None:
        now = time.monotonic()
        if collector.awaited or now - written >= SPAN_US / SECOND_US:
            collector.flush()
            written = now
        if now - tidied >= _TIDY_S:
            collector.tidy()
            tidied = time.monotonic()
        del collector
