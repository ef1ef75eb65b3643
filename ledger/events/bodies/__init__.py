"""Bodies: the facts of an event, typed by its kind.

Each kind has one class with its permanent name, the series that numbers its events, and the number
of its newest schema. A header says its body's schema where it is not the first, and a reader knows
every schema up to its own: what a kind comes to say is added as a schema of its own, with whatever
`from_json` then takes an older one for. A schema that is newer than the reader is an error.
"""

from collections.abc import Mapping
from typing import TypeVar

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events.bodies.adapters import AdapterLoaded, AdapterUnloaded
from weightledger.ledger.events.bodies.approvals import (
    ApprovalDecided,
    ApprovalLapsed,
    ApprovalRequested,
)
from weightledger.ledger.events.bodies.holds import HoldPlaced, HoldReleased
from weightledger.ledger.events.bodies.monitoring import Observed, PolicyChanged
from weightledger.ledger.events.bodies.protocol import EventBody
from weightledger.ledger.events.bodies.rollouts import RolloutChanged
from weightledger.ledger.events.bodies.states import (
    Registered,
    RolledBack,
    Updated,
    UpdateRejected,
    counted_parameters,
)
from weightledger.ledger.events.bodies.upkeep import KeyRotation, Pruning, Redaction, Repair
from weightledger.ledger.events.bodies.versions import (
    NamedState,
    VersionCreated,
    VersionPinned,
    VersionRetired,
    VersionUnpinned,
)
from weightledger.ledger.events.event import Event

__all__ = [
    "BODIES",
    "AdapterLoaded",
    "AdapterUnloaded",
    "ApprovalDecided",
    "ApprovalLapsed",
    "ApprovalRequested",
    "EventBody",
    "HoldPlaced",
    "HoldReleased",
    "KeyRotation",
    "NamedState",
    "Observed",
    "PolicyChanged",
    "Pruning",
    "Redaction",
    "Registered",
    "Repair",
    "RolledBack",
    "RolloutChanged",
    "UpdateRejected",
    "Updated",
    "VersionCreated",
    "VersionPinned",
    "VersionRetired",
    "VersionUnpinned",
    "body_of",
    "counted_parameters",
    "pin_of",
]

B = TypeVar("B", bound=EventBody)

BODIES: Mapping[str, type[EventBody]] = {
    body.KIND: body
    for body in (
        Registered,
        Updated,
        UpdateRejected,
        RolledBack,
        VersionCreated,
        VersionRetired,
        VersionPinned,
        VersionUnpinned,
        AdapterLoaded,
        AdapterUnloaded,
        Pruning,
        Repair,
        Observed,
        PolicyChanged,
        Redaction,
        KeyRotation,
        ApprovalRequested,
        ApprovalDecided,
        ApprovalLapsed,
        HoldPlaced,
        HoldReleased,
        RolloutChanged,
    )
}


def pin_of(event: Event) -> tuple[int, bool]:
    """The number of a version and whether it is pinned, of an event that pins or unpins it."""
    if event.kind == VersionPinned.KIND:
        return body_of(event, VersionPinned).number, True
    return body_of(event, VersionUnpinned).number, False


def body_of(event: Event, expected: type[B]) -> B:
    """An event's body; CorruptLedger names the seq where it cannot be read as what it must be."""
    if event.kind != expected.KIND:
        raise CorruptLedger(
            f"event {event.seq} is {event.kind!r}, expected {expected.KIND!r}", seq=event.seq
        )
    if event.schema > expected.SCHEMA:
        raise CorruptLedger(
            f"event {event.seq}: schema {event.schema} of {event.kind!r} is not known, a newer "
            "release wrote it",
            seq=event.seq,
        )
    try:
        return expected.from_json(event.body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptLedger(
            f"event {event.seq}: its body is not that of {event.kind!r}: {error!r}", seq=event.seq
        ) from None
