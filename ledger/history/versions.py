"""Versions: names for states.

Naming is one small event; nothing is copied. A version stays listed until a `version_retired`
event takes its name off the list; the event and the digest it names stay for ever.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import PINS, ROLLED_BACK, Event
from weightledger.ledger.events.bodies import VersionCreated, body_of
from weightledger.ledger.store import EventFilter, EventStore, Listed

_MOST_ROLLBACKS = 256  # that are read at a time


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


def is_listed(store: EventStore, version_created: Event) -> bool:
    """Whether a version still has its name on the list."""
    number = version_created.number
    return number is not None and store.listed_version(number) is not None


def list_versions(store: EventStore) -> list[ModelVersion]:
    """The versions that are not retired, newest first."""
    return _described(store, store.listed_versions()[::-1])


def last_versions(store: EventStore, limit: int, below: int | None) -> list[ModelVersion]:
    """Of the versions that are not retired the last ones (below a number), newest first."""
    return _described(store, store.last_listed(limit, below))


def naming(store: EventStore, nodes: Sequence[int]) -> list[ModelVersion]:
    """The versions that name the state of one of these nodes, newest first."""
    return _described(store, store.listed_at(nodes)[::-1])


def _described(store: EventStore, listed: Sequence[Listed]) -> list[ModelVersion]:
    if not listed:
        return []
    active = store.head().active
    events = store.events(one.seq for one in listed)
    gone = min((one.seq for one in listed if one.seq not in events), default=None)
    if gone is not None:
        raise CorruptLedger(f"event {gone} is missing from the log", seq=gone)
    return [
        describe(events[one.seq], active=one.number == active, pinned=one.pinned) for one in listed
    ]


def is_pinned(store: EventStore, version_created: Event) -> bool:
    """Whether a version is on the list for ever."""
    assert version_created.number is not None
    listed = store.listed_version(version_created.number)
    return listed is not None and listed.pinned


def next_pin(store: EventStore) -> int:
    """The number of the next event that pins or unpins a version."""
    last = store.last_number(PINS)
    return 0 if last is None else last + 1


def describe(event: Event, *, active: bool, pinned: bool = False) -> ModelVersion:
    """The version that a `version_created` event names."""
    body = body_of(event, VersionCreated)
    return ModelVersion(
        version_id=event.name,
        timestamp=event.timestamp,
        description=body.description,
        is_active=active,
        performance_metrics=dict(body.performance_metrics),
        seq=body.names.seq,
        digest=body.names.state,
        pinned=pinned,
    )


def nearest(store: EventStore, node: int) -> int | None:
    """The number of the newest listed version that names `node` or its nearest named ancestor.

    Between two rollbacks every state stands on the one before it, so the way up leaps from one
    rollback to where it led, and costs no more than there are rollbacks on it. On the first state
    stand all others.
    """
    at = node
    named = store.listed_before(at)
    back: Iterator[Event] = iter(())
    page = 1
    while named is not None and named.node > 0:
        rollback = next((event for event in back if event.seq <= at), None)
        if rollback is None:
            earlier = EventFilter(kinds=[ROLLED_BACK], max_seq=at)
            back = iter(store.select(earlier, limit=page))
            rollback = next(back, None)
            page = min(4 * page, _MOST_ROLLBACKS)
        if rollback is None or rollback.seq < named.node:
            return named.number
        at = rollback.node
        if named.node > at:
            named = store.listed_before(at)
    return None if named is None else named.number


def updates_since_active(store: EventStore) -> int | None:
    """How many applied updates lie between the active version's state and the head's.

    None without an active version. Costs as much as `nearest`.
    """
    head = store.head()
    active = None if head.active is None else store.listed_version(head.active)
    return None if active is None else updates_since(store, active, head)


def updates_since(store: EventStore, active: Listed, head: Event) -> int:
    """How many applied updates lie between the state of a head's active version and its own."""
    total, at = 0, head.node
    while True:
        # Between two rollbacks every state stands on the one before it.
        earlier = EventFilter(kinds=[ROLLED_BACK], min_seq=active.node + 1, max_seq=at)
        rollback = next(iter(store.select(earlier, limit=1)), None)
        below = active.node if rollback is None else rollback.seq
        total += _applied(store, at) - _applied(store, below)
        if rollback is None:
            return total
        at = rollback.node


def _applied(store: EventStore, seq: int) -> int:
    event = store.event(seq)
    if event is None:
        raise CorruptLedger(f"event {seq} is missing from the log", seq=seq)
    return event.counts.applied
