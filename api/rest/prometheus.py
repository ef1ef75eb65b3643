"""Prometheus metrics of one manager, in a registry of its own."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from weightledger import DynamicModelManager
from weightledger.ledger.events import ROLLED_BACK, UPDATE_REJECTED, UPDATED
from weightledger.ledger.writing.writer import Committed

_OUTCOMES = {UPDATED: "applied", UPDATE_REJECTED: "rejected"}
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counts what a manager's log appends, and where it stands when it is asked."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, manager: DynamicModelManager) -> None:
        self._registry = CollectorRegistry()
        self._model = manager.model_name
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
        self._registry.register(_Position(manager))
        manager.log.subscribe(self._count)

    def exposition(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(
            f"weightledger_{name}_duration_seconds",
            text,
            ["model_name"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def _count(self, written: Committed) -> None:
        event = written.event
        self._append.labels(self._model).observe(written.append_s)
        if event.kind in _OUTCOMES:
            self._updates.labels(self._model, _OUTCOMES[event.kind]).inc()
            self._apply.labels(self._model).observe(written.total_s)
            self._delta_bytes.labels(self._model).inc(event.payload_size)
        elif event.kind == ROLLED_BACK:
            self._rollbacks.labels(self._model, event.body["cause"]).inc()
            self._rollback.labels(self._model).observe(written.total_s)


class _Position(Collector):
    def __init__(self, manager: DynamicModelManager) -> None:
        self._manager = manager

    def collect(self) -> Iterator[GaugeMetricFamily]:
        log = self._manager.log
        head, live = log.history.head().seq, log.live.head.seq
        for name, text, value in (
            ("weightledger_head_seq", "Seq of the last event of the log.", head),
            ("weightledger_projector_lag_events", "Events not yet shown.", head - live),
        ):
            family = GaugeMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self._manager.model_name], value)
            yield family
