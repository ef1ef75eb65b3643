"""Prometheus metrics of one manager, in a registry of its own.

They answer when the database does not: what only it could tell is left out then, and
`weightledger_ready` is 0.
"""

import logging
from collections import Counter as Counted
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from weightledger import DynamicModelManager
from weightledger.api.rest.asking import Asking
from weightledger.api.rest.observing import Writes
from weightledger.api.rest.workers import Workers
from weightledger.ledger.audit import marks
from weightledger.ledger.audit.notary import Notary
from weightledger.ledger.errors import LedgerError
from weightledger.ledger.events import OBSERVED, ROLLED_BACK, UPDATE_REJECTED, UPDATED
from weightledger.ledger.fleet.follower import Follower
from weightledger.ledger.fleet.served import fleet
from weightledger.ledger.monitoring.drift import DRIFT
from weightledger.ledger.monitoring.metrics import EVALUATED, METRICS
from weightledger.ledger.monitoring.samples import OUTCOMES, Inferences, Sample
from weightledger.ledger.writing.showing import Committed

logger = logging.getLogger(__name__)

_OUTCOMES = {UPDATED: "applied", UPDATE_REJECTED: "rejected"}
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counts what a manager's log appends, and where it stands when it is asked."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, manager: DynamicModelManager) -> None:
        self.writes = Writes()
        self.inference: Workers | None = None
        self.notary: Notary | None = None
        self._registry = CollectorRegistry()
        self._model = manager.model_name
        # A metric with its labels, which the library looks for under a lock, request by request.
        self._of: Callable[..., Any] = cache(lambda metric, *labels: metric.labels(*labels))
        self._updates = Counter(
            "weightledger_updates",
            "Updates by outcome.",
            ["model_name", "outcome"],
            registry=self._registry,
        )
        self._rollbacks = Counter(
            "weightledger_rollbacks",
            "Rollbacks by what triggered them.",
            ["model_name", "trigger"],
            registry=self._registry,
        )
        self._delta_bytes = Counter(
            "weightledger_delta_bytes",
            "Encoded bytes of applied updates.",
            ["model_name"],
            registry=self._registry,
        )
        self._apply = self._histogram("apply", "From request to visible weights.")
        self._append = self._histogram("append", "The database transaction of one event.")
        self._rollback = self._histogram("rollback", "From request to visible weights.")
        self._requests = Counter(
            "weightledger_requests",
            "Requests by route and status.",
            ["route", "method", "status"],
            registry=self._registry,
        )
        self._failed = Counter(
            "weightledger_failed_writes",
            "Writes that the server could not carry out, by the code of the reply.",
            ["model_name", "code"],
            registry=self._registry,
        )
        self.latency = Distribution(_SECONDS)
        self.waited = Distribution(_SECONDS)
        self._inferences = Counter(
            "weightledger_inferences",
            "Inferences by outcome: ok, failed or not_finite.",
            ["model_name", "outcome"],
            registry=self._registry,
        )
        self._items = Counter(
            "weightledger_inference_items",
            "Rows, texts or tokens that requests were answered with.",
            ["model_name"],
            registry=self._registry,
        )
        self._scores = Gauge(
            "weightledger_score",
            "The last score by an evaluator, or from outside, by metric.",
            ["model_name", "metric", "source"],
            registry=self._registry,
        )
        self._drifts = Counter(
            "weightledger_drifts",
            "Streams that drifted, by metric; `custom` is one with a name of its own.",
            ["model_name", "metric"],
            registry=self._registry,
        )
        history = manager.log.history
        # The seq of the log's last event and the database's version; StorageError in bounded time.
        self.database = Asking(lambda: (history.head().seq, history.store.home.version()))
        self._registry.register(_Now(manager, self))
        manager.log.subscribe(self._count)
        manager.collector.subscribe(self._measured)
        manager.collector.subscribe_samples(self._scored)

    def exposition(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def seen(self, route: str, method: str, status: int, state: dict[str, object]) -> None:
        """What a request came to; see `observing.Observed`."""
        self._of(self._requests, route, method, status).inc()
        if not state.get("write"):
            return
        if status >= 500:
            code = str(state.get("code", "internal"))
            self._failed.labels(self._model, code).inc()
            self.writes.failed(code)
        elif status < 300:
            self.writes.succeeded()

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(
            f"weightledger_{name}_duration_seconds",
            text,
            ["model_name"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def _measured(self, inferences: Inferences) -> None:
        """Whole batches at a time: requests are many, and this runs beside them."""
        counts = np.bincount(inferences.outcome, minlength=len(OUTCOMES)).tolist()
        for outcome, count in zip(OUTCOMES, counts, strict=True):
            if count:
                self._inferences.labels(self._model, outcome).inc(count)
        self.latency.add(inferences.latency_ms[inferences.ok] / 1000)
        self.waited.add(inferences.queue_ms[~np.isnan(inferences.queue_ms)] / 1000)
        self._items.labels(self._model).inc(int(np.maximum(inferences.items, 0).sum()))

    def _scored(self, samples: Sequence[Sample]) -> None:
        for one in samples:
            if one.metric in EVALUATED:  # names of one's own are not for labels
                self._scores.labels(self._model, one.metric, one.source).set(one.value)

    def _count(self, written: Committed) -> None:
        event = written.event
        if written.append_s is not None:
            self._of(self._append, self._model).observe(written.append_s)
        if event.kind in _OUTCOMES:
            self._of(self._updates, self._model, _OUTCOMES[event.kind]).inc()
            self._of(self._apply, self._model).observe(written.total_s)
            self._of(self._delta_bytes, self._model).inc(event.payload_size)
        elif event.kind == OBSERVED and event.body["verdict"] == DRIFT:
            metric = event.body["evidence"]["metric"]
            named = metric if metric in METRICS else "custom"  # own names are not for labels
            self._drifts.labels(self._model, named).inc()
        elif event.kind == ROLLED_BACK:
            self._rollbacks.labels(self._model, event.body["cause"]).inc()
            self._rollback.labels(self._model).observe(written.total_s)


class Distribution:
    """Values in buckets, taken in many at a time; to be read from any thread."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = np.asarray(bounds)
        self._counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self.total = 0.0

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Count values, [n]; only one thread does."""
        if len(values):
            # At its bound a value is within the bucket.
            places = np.searchsorted(self._bounds, values)
            self._counts = self._counts + np.bincount(places, minlength=len(self._counts))
            self.total += float(values.sum())

    def buckets(self) -> list[tuple[str, float]]:
        """How many values are up to each bound, as text, the last one +Inf."""
        names = [*map(str, self._bounds.tolist()), "+Inf"]
        return list(zip(names, np.cumsum(self._counts).tolist(), strict=True))


class _Now(Collector):
    """What is true at the moment somebody asks."""

    def __init__(self, manager: DynamicModelManager, metrics: Metrics) -> None:
        self._manager = manager
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        log = self._manager.log
        live = log.live.head.seq
        ready = self._manager.fault is None
        database = None
        try:
            head, database = self._metrics.database()
        except LedgerError as error:
            logger.warning("metrics without the database: %s", error)
            ready = False
        else:
            yield self._gauge("head_seq", "Seq of the last event of the log.", head)
            yield self._gauge("projector_lag_events", "Events not yet shown.", head - live)
            yield from self._replicas()
            mark = marks.read(Path(self._manager.config.backup_dir), log.history.store)
            if mark is not None:
                text = "Seq up to which `weightledger verify` found the log whole."
                yield self._gauge("verified_seq", text, mark.events - 1)
        if self._manager.follower is not None:
            yield from self._follower(self._manager.follower)
        notary = self._metrics.notary
        if notary is not None and notary.started:
            yield from self._vouched(notary)
        yield self._gauge("live_seq", "Seq of the last event that is shown.", live)
        yield self._gauge("ready", "1 when /readyz says so.", ready)
        failing = self._metrics.writes.outage is not None
        yield self._gauge("writes_failing", "1 while the last write failed.", failing)
        held = self._manager.engine.held_versions()
        for name, text, one in (
            ("inference", "How long the model held a request.", self._metrics.latency),
            ("inference_queue", "How long a request waited.", self._metrics.waited),
        ):
            family = HistogramMetricFamily(
                f"weightledger_{name}_duration_seconds", text, labels=["model_name"]
            )
            family.add_metric([self._manager.model_name], one.buckets(), one.total)
            yield family
        health = self._manager.collector.health
        yield self._gauge(
            "metrics_failing", "1 while metrics cannot be written.", health.fault is not None
        )
        lost = CounterMetricFamily(
            "weightledger_lost_samples", "Values that could not be kept.", labels=["model_name"]
        )
        lost.add_metric([self._manager.model_name], health.lost)
        yield lost
        yield self._gauge("held_versions", "Past versions that readers hold.", held)
        depth = GaugeMetricFamily(
            "weightledger_queue_depth", "What waits for its turn.", labels=["model_name", "queue"]
        )
        depth.add_metric([self._manager.model_name, "writes"], log.waiting)
        if self._metrics.inference is not None:
            waiting = self._metrics.inference.waiting
            depth.add_metric([self._manager.model_name, "inference"], waiting)
        yield depth
        build = {"version": version("weightledger"), "database": database or "unknown"}
        yield InfoMetricFamily("weightledger_build", "What runs here.", value=build)

    def _replicas(self) -> Iterator[Metric]:
        """How the replicas stand, by state; and how this one does, if it is one."""
        name = self._manager.model_name
        try:
            states = Counted(one.state for one in fleet(self._manager.log.history))
        except LedgerError as error:
            logger.warning("metrics without the replicas: %s", error)
            return
        family = GaugeMetricFamily(
            "weightledger_replicas", "Replicas by state.", labels=["model_name", "state"]
        )
        for state, count in sorted(states.items()):
            family.add_metric([name, state], count)
        yield family

    def _follower(self, follower: Follower) -> Iterator[Metric]:
        said = follower.readiness()
        text = "Seconds for which there have been events that are not shown."
        yield self._gauge("replica_lag_seconds", text, said.lag_s)
        yield self._gauge("replica_lag_events", "Events not shown yet.", said.lag_events)
        yield self._gauge("replica_stale", "1 while the database is not heard of.", said.stale)

    def _vouched(self, notary: Notary) -> Iterator[Metric]:
        standing = notary.standing
        text = "Seq of the last event that a signed checkpoint covers."
        yield self._gauge("signed_seq", text, standing.signed - 1)
        if notary.quorum:
            text = "Seq of the last event in a checkpoint that the quorum of witnesses cosigned."
            yield self._gauge("witnessed_seq", text, standing.witnessed - 1)
        text = "1 when the log is not the one that was signed."
        yield self._gauge("log_contradicted", text, bool(standing.contradictions))

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"weightledger_{name}", text, labels=["model_name"])
        family.add_metric([self._manager.model_name], value)
        return family
