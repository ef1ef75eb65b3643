"""Rollouts as the log tells them: which one runs, and what each replica is to show.

What a replica is to show is a function of the log and of its name, so nobody directs replicas, and
what each should have shown at any event can be worked out again.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weightledger.ledger.events import ROLLOUTS, Event
from weightledger.ledger.events.bodies import RolloutChanged, body_of
from weightledger.ledger.store import EventStore

STARTED, ADVANCED, FINISHED, ABORTED = "started", "advanced", "finished", "aborted"

_RUNNING = (STARTED, ADVANCED)
_PARTS = 100


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout as its last event left it; the rest as in `RolloutChanged`."""

    id: str
    status: str
    percent: int
    to: int | None
    base: int | None
    number: int
    started_seq: int
    changed: Event
    reason: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        """Whether replicas are told apart by it."""
        return self.status in _RUNNING


def rollout_of(event: Event) -> Rollout:
    """The rollout that an event started or changed."""
    body = body_of(event, RolloutChanged)
    started = event.seq if body.rollout is None else body.rollout
    assert event.number is not None
    return Rollout(
        id=f"rollout_{started}",
        status=body.action,
        percent=body.percent,
        to=body.to,
        base=body.base,
        number=event.number,
        started_seq=started,
        changed=event,
        reason=body.reason,
        evidence=body.evidence,
    )


def newest(store: EventStore) -> Rollout | None:
    """The last rollout, running or not; None before the first."""
    number = store.last_number(ROLLOUTS)
    event = None if number is None else store.by_number(ROLLOUTS, number)
    return None if event is None else rollout_of(event)


def latest(store: EventStore, most: int) -> list[Rollout]:
    """The last rollouts as they stand, newest first."""
    listed: list[Rollout] = []
    last = store.last_number(ROLLOUTS)
    number = -1 if last is None else last
    while number >= 0 and len(listed) < most:
        event = store.by_number(ROLLOUTS, number)
        assert event is not None, "numbers are without gaps"
        rollout = rollout_of(event)
        if not listed or listed[-1].id != rollout.id:
            listed.append(rollout)
        number -= 1
    return listed


def cohort(rollout: str, replica: str) -> int:
    """Which percent a replica belongs to, 0 to 99: SHA-256(rollout ‖ replica) mod 100."""
    digest = hashlib.sha256(f"{rollout}{replica}".encode()).digest()
    return int.from_bytes(digest) % _PARTS


def target(rollout: Rollout | None, replica: str) -> int | None:
    """The node that a replica is to show; None for the head, wherever that goes."""
    if rollout is None or not rollout.running:
        return None
    return rollout.to if cohort(rollout.id, replica) < rollout.percent else rollout.base


def held_nodes(rollout: Rollout | None) -> set[int]:
    """The states that replicas are held at, which have to stay restorable."""
    if rollout is None or not rollout.running:
        return set()
    return {node for node in (rollout.to, rollout.base) if node is not None}
