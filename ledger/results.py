"""What the specification's callers are told: about an event, and about where a model stands."""

from collections.abc import Sequence
from typing import Any

from weightledger.ledger import events
from weightledger.ledger.config import METRICS, DynamicUpdateConfig
from weightledger.ledger.events import Event
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.versions import updates_since_active
from weightledger.ledger.monitoring.rollups import MetricsReader, Rollup, Where
from weightledger.ledger.store import EventFilter

_RECENT = 5


def update_result(event: Event, answer: Event | None = None) -> dict[str, Any]:
    """The reply for an update's event and the rollback that answered it, if any."""
    metrics = {
        "pre_metrics": event.body["pre_metrics"],
        "post_metrics": event.body["post_metrics"],
    }
    if answer is not None:
        return {
            "success": False,
            "reason": f"Automatic rollback: {answer.body['reason']}",
            "update_id": event.name,
            **metrics,
        }
    if event.kind == events.UPDATED:
        return {
            "success": True,
            "update_id": event.name,
            "update_count": event.counts.applied,
            **metrics,
        }
    return {
        "success": False,
        "reason": event.body["reason"],
        "update_id": event.name,
        **metrics,
    }


def rollback_result(event: Event, target: Event) -> dict[str, Any]:
    """The reply for a rollback to the state after `target`, or to the one that `target` names."""
    if event.body["version_id"] is not None:
        description = target.body["description"]
    else:
        description = f"State after {target.name}"
    return {
        "success": True,
        "rolled_back_to": event.body["to"],
        "timestamp": target.timestamp,
        "description": description,
    }


def status(
    history: History, config: DynamicUpdateConfig, measured: MetricsReader
) -> dict[str, Any]:
    """Where a model stands, how it is configured, and the metrics of its last five updates.

    Those are what was known when an update was applied, and what was measured of its state since.
    """
    versions = history.versions()
    applied = history.events(EventFilter(kinds=[events.UPDATED]), limit=_RECENT)
    return {
        "current_version": next((v.version_id for v in versions if v.is_active), None),
        "updates_since_version": updates_since_active(history.store),
        "total_versions": len(versions),
        "total_updates": history.head().counts.applied,
        "config": {
            "max_versions": config.max_versions,
            "checkpoint_interval": config.checkpoint_interval,
            "auto_rollback_threshold": config.auto_rollback_threshold,
            "incremental_learning_enabled": config.enable_incremental_learning,
            "versioning_enabled": config.enable_versioning,
        },
        "recent_performance": _performance(applied, measured),
    }


def _performance(applied: Sequence[Event], measured: MetricsReader) -> list[dict[str, float]]:
    if not applied:
        return []
    where = Where(metrics=METRICS, min_seq=applied[-1].seq, max_seq=applied[0].seq, own=True)
    of: dict[int, dict[str, list[Rollup]]] = {event.seq: {} for event in applied}
    for one in measured.rollups(where):
        if one.first_seq == one.last_seq and one.first_seq in of:
            of[one.first_seq].setdefault(one.metric, []).append(one)
    told = []
    for event in applied:
        means = {
            metric: sum(one.total for one in ones) / sum(one.count for one in ones)
            for metric, ones in of[event.seq].items()
        }
        told.append({**event.body.get("post_metrics", {}), **means})
    return [metrics for metrics in told if metrics]
