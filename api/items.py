"""Events and versions as every face shows them: plain JSON."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from weightledger.ledger.access.keys import ApiKey, KeyChange
from weightledger.ledger.events import UPDATE_REJECTED, UPDATED, Annotation, Event
from weightledger.ledger.fleet.served import Replica, Served
from weightledger.ledger.history.approvals import Approval
from weightledger.ledger.history.density import Density
from weightledger.ledger.history.holds import Hold
from weightledger.ledger.history.positions import iso_time
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.rollouts import Rollout
from weightledger.ledger.history.versions import ModelVersion
from weightledger.ledger.store import DayCount

if TYPE_CHECKING:  # which commands that read events have no use for
    from weightledger.ledger.monitoring.deciding.chronicle import Series
    from weightledger.ledger.monitoring.drift import StreamStatus
    from weightledger.ledger.monitoring.trial_log import Trial


def event_item(event: Event, annotation: Annotation | None) -> dict[str, Any]:
    """One event as the audit routes and `--json` show it."""
    return {
        "id": event.name,
        "object": "event",
        "seq": event.seq,
        "kind": event.kind,
        "recorded_at": iso_time(event.recorded_at),
        "actor": annotation.actor if annotation else None,
        "reason": annotation.reason if annotation else None,
        "request_id": event.request_id,
        "idempotency_key": event.idempotency_key,
        "state_seq": event.state_seq,
        "node": event.node,
        "state_before": event.state_before.hex() if event.state_before else None,
        "state_after": event.state_after.hex(),
        "payload_bytes": event.payload_size,
        "event_hash": event.hash.hex(),
        "metadata": json.loads(annotation.metadata) if annotation and annotation.metadata else None,
        "redacted": redacted_of(event, annotation),
        "facts": dict(event.body),
    }


def redacted_of(event: Event, annotation: Annotation | None) -> list[str]:
    """The texts that an event had and that were taken away."""
    note = annotation or Annotation()
    digests = {
        "actor": event.actor_digest,
        "reason": event.reason_digest,
        "metadata": event.metadata_digest,
    }
    return [name for name, digest in digests.items() if digest and getattr(note, name) is None]


_OUTCOMES = {UPDATED: "applied", UPDATE_REJECTED: "rejected"}
OUTCOMES = tuple(_OUTCOMES.values())


def kinds_of(kinds: Sequence[str], outcome: str | None) -> Sequence[str] | None:
    """The kinds that pass both filters: none listed is all of them, and None is none of them."""
    if outcome is None:
        return kinds
    (wanted,) = (kind for kind, name in _OUTCOMES.items() if name == outcome)
    return [wanted] if not kinds or wanted in kinds else None


def activity_item(one: DayCount) -> dict[str, Any]:
    """How many events there were on a day, of one kind, by one actor."""
    day = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=one.day)
    return {
        "day": day.date().isoformat(),
        "kind": one.kind,
        "outcome": _OUTCOMES.get(one.kind),
        "actor": one.actor,
        "events": one.events,
    }


def density_item(density: Density) -> dict[str, Any]:
    """How many events there were over time."""
    return {
        "object": "density",
        "start": iso_time(density.start_us),
        "step_seconds": density.step_us // 1_000_000,
        "events": list(density.events),
    }


def approval_item(approval: Approval) -> dict[str, Any]:
    """A write that waits or waited for a second person."""
    decision, outcome, lapse = approval.decision, approval.outcome, approval.lapse
    return {
        "id": approval.id,
        "object": "approval",
        "state": approval.state,
        "request": approval.asked,
        "requested_by": approval.requested_by,
        "requested_at": iso_time(approval.request.recorded_at),
        "reason": approval.reason,
        "metadata": json.loads(approval.metadata) if approval.metadata else None,
        "decided_by": approval.decided_by,
        "decided_at": iso_time(decision.recorded_at) if decision else None,
        "outcome": outcome.name if outcome else None,
        "lapsed": lapse.body["cause"] if lapse else None,
    }


def hold_item(hold: Hold) -> dict[str, Any]:
    """A legal hold of a version, that stands or was released."""
    what, release = hold.what, hold.release
    return {
        "id": hold.id,
        "object": "hold",
        "version_id": what.version_id,
        "node": what.node,
        "digest": what.state.hex(),
        "placed_by": hold.placed_by,
        "placed_at": iso_time(hold.placed.recorded_at),
        "reason": hold.reason,
        "released_by": hold.released_by,
        "released_at": iso_time(release.recorded_at) if release else None,
        "release_reason": hold.release_reason,
    }


def redaction_facts(
    history: History, seqs: Iterable[int], fields: Sequence[str], done: Sequence[Event]
) -> dict[str, Any]:
    """What was redacted by the events `done`, or would be where there are none."""
    return {
        "model": history.model,
        "dry_run": not done,
        "fields": list(fields),
        "events": [history.require(seq).name for seq in seqs],
        "recorded_as": [event.name for event in done],
    }


def version_item(version: ModelVersion) -> dict[str, Any]:
    """One listed version, with what the specification's five fields leave out."""
    return {
        **version.to_dict(),
        "recorded_at": iso_time(int(version.timestamp * 1_000_000)),
        "pinned": version.pinned,
        "seq": version.seq,
        "digest": version.digest.hex(),
    }


def evidence_item(trial: str, series: Sequence["Series"]) -> dict[str, Any]:
    """What a trial showed by and by, a series for each test."""
    return {
        "object": "trial_evidence",
        "trial_id": trial,
        "series": [
            {
                **{name: getattr(one, name) for name in _OF_SERIES},
                "points": [
                    {"at": iso_time(point.at_us), **{n: getattr(point, n) for n in _OF_POINTS}}
                    for point in one.points
                ],
            }
            for one in series
        ],
    }


_OF_SERIES = ("metric", "aspect", "scale", "limit", "alpha", "needed", "whole")
_OF_POINTS = ("n_old", "n_new", "estimate", "lower", "upper", "statistic")


def drift_item(stream: "StreamStatus") -> dict[str, Any]:
    """A stream that is looked at for drift."""
    last = stream.last_at
    at = None if last is None else iso_time(int(last * 1_000_000))
    return {"object": "stream", **asdict(stream), "last_at": at}


def replica_item(one: Replica) -> dict[str, Any]:
    """One replica as it was last heard of."""
    return {
        "object": "replica",
        "replica": one.replica,
        "state": one.state,
        "reason": one.reason,
        "seq": one.seq,
        "digest": None if one.digest is None else one.digest.hex(),
        "lag_events": one.lag_events,
        "lag_s": one.lag_s,
        "target": _node(one.target),
        "cohort": one.cohort,
        "incarnation": one.incarnation,
        "host": one.host,
        "url": one.url,
        "release": one.release,
        "started_at": iso_time(one.started_at),
        "seen_at": iso_time(one.seen_at),
    }


def served_item(one: Served) -> dict[str, Any]:
    """What a replica served at a time."""
    return {
        "object": "served",
        "replica": one.replica,
        "at": iso_time(one.at),
        "known": one.known,
        "seq": one.seq,
        "digest": None if one.digest is None else one.digest.hex(),
        "since": None if one.since is None else iso_time(one.since),
        "until": None if one.until is None else iso_time(one.until),
        "incarnation": one.incarnation,
        "reason": one.reason,
    }


def rollout_item(one: Rollout) -> dict[str, Any]:
    """One rollout as it stands."""
    return {
        "object": "rollout",
        "id": one.id,
        "status": one.status,
        "running": one.running,
        "percent": one.percent,
        "to": _node(one.to),
        "base": _node(one.base),
        "started_seq": one.started_seq,
        "changed_seq": one.changed.seq,
        "changed_at": iso_time(one.changed.recorded_at),
        "reason": one.reason,
        "evidence": dict(one.evidence),
    }


def _node(node: int | None) -> str:
    """A state that replicas are to show, as a position."""
    return "head" if node is None else f"seq:{node}"


def trial_item(trial: "Trial") -> dict[str, Any]:
    """One trial, running or ended."""
    requests = trial.requests
    return {
        "id": trial.id,
        "object": "trial",
        "status": trial.status,
        "of": trial.of,
        "beside": trial.beside,
        "share": trial.share,
        "policy": trial.policy,
        "started_at": iso_time(trial.started_at),
        "ended_at": None if trial.ended_at is None else iso_time(trial.ended_at),
        "requests_old": None if requests is None else requests[0],
        "requests_new": None if requests is None else requests[1],
        "reason": trial.reason,
    }


_KEY_TIMES = ("created_at", "expires_at", "rotated_at", "revoked_at", "used_at")


def key_item(key: ApiKey, now: int) -> dict[str, Any]:
    """A key as it is listed: everything but its secret. `now` is in UTC microseconds."""
    times = {
        name: None if at is None else iso_time(at)
        for name in _KEY_TIMES
        for at in (getattr(key, name),)
    }
    return {
        "name": key.name,
        "scope": key.scope,
        "state": key.state(now),
        "requests_per_minute": key.requests_per_minute,
        "created_by": key.created_by,
        "revoked_by": key.revoked_by,
        **times,
    }


def key_change_item(change: KeyChange) -> dict[str, Any]:
    """One thing that was done to a key."""
    return {
        "action": change.action,
        "recorded_at": iso_time(change.recorded_at),
        "actor": change.actor,
    }
