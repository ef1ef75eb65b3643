"""Versions: names for states.

Naming is one small event; nothing is copied. A version stays listed until a `version_retired`
event takes its name off the list; the event and the digest it names stay for ever.
"""

from dataclasses import dataclass
from typing import Any

from ledger.events import PINS, VERSION_PINNED, Event
from ledger.lineage import Lineage
from ledger.store import EventStore


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One listed version.

    `timestamp` is Unix seconds; `seq` is the state-changing event whose result it names, `digest`
    the digest of that state; `performance_metrics` holds what was measured when it was named. A
    `pinned` version is never retired.
    """

    version_id: str
    timestamp: float
    description: str
    is_active: bool
    performance_metrics: dict[str, float]
    seq: int
    digest: bytes
    pinned: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The five fields of the specification."""
        return {
            "version_id": self.version_id,
            "timestamp": self.timestamp,
            "description": self.description,
            "is_active": self.is_active,
            "performance_metrics": self.performance_metrics,
        }


def is_listed(store: EventStore, model_id: int, version_created: Event) -> bool:
    """Whether a version still has its name on the list."""
    return any(number == version_created.number for number, _ in store.listed_versions(model_id))


def list_versions(store: EventStore, model_id: int) -> list[ModelVersion]:
    """The versions that are not retired, newest first."""
    active = store.head(model_id).active
    pinned = pins(store, model_id).pinned
    events = (store.event(model_id, seq) for _, seq in reversed(store.listed_versions(model_id)))
    return [
        describe(event, active=event.number == active, pinned=event.number in pinned)
        for event in events
        if event
    ]


@dataclass(frozen=True, slots=True)
class Pins:
    """The numbers of the pinned versions, and how many events say so."""

    pinned: frozenset[int]
    events: int


def pins(store: EventStore, model_id: int) -> Pins:
    """What is pinned: the fold of the events that pin and unpin."""
    pinned: set[int] = set()
    count = 0
    while (event := store.by_number(model_id, PINS, count)) is not None:
        number: int = event.body["number"]
        if event.kind == VERSION_PINNED:
            pinned.add(number)
        else:
            pinned.discard(number)
        count += 1
    return Pins(frozenset(pinned), count)


def describe(event: Event, *, active: bool, pinned: bool = False) -> ModelVersion:
    """The version that a `version_created` event names."""
    named = event.body["names"]
    return ModelVersion(
        version_id=event.name,
        timestamp=event.timestamp,
        description=event.body["description"],
        is_active=active,
        performance_metrics=dict(event.body["performance_metrics"]),
        seq=named["seq"],
        digest=bytes.fromhex(named["state"]),
        pinned=pinned,
    )


def nearest(store: EventStore, model_id: int, lineage: Lineage, node: int) -> int | None:
    """The number of the newest listed version that names `node` or its nearest named ancestor."""
    named: dict[int, int] = {}
    for number, seq in store.listed_versions(model_id):
        event = store.event(model_id, seq)
        if event is not None:
            named[event.body["names"]["node"]] = number
    at: int | None = node
    while at is not None and named:
        if at in named:
            return named[at]
        at = lineage.parent(at) if at >= min(named) else None
    return None
