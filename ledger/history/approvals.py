"""Writes that wait for a second person, and what became of them, told by the log itself."""

from dataclasses import dataclass
from typing import Any, Literal

from weightledger.ledger.errors import NotFound
from weightledger.ledger.events import APPROVAL_REQUESTED, APPROVALS, DECISIONS, LAPSES, Event
from weightledger.ledger.events.bodies import ApprovalDecided, body_of
from weightledger.ledger.store import EventFilter, EventStore

State = Literal["pending", "approved", "carried out", "rejected", "lapsed"]


@dataclass(frozen=True, slots=True)
class Approval:
    """A write that waits or waited: its request, who decided, and the event that it led to."""

    request: Event
    requested_by: str | None
    reason: str | None
    metadata: str | None
    decision: Event | None = None
    decided_by: str | None = None
    outcome: Event | None = None
    lapse: Event | None = None

    @property
    def id(self) -> str:
        """Its name: `approval_{n}`."""
        return approval_id(self.number)

    @property
    def number(self) -> int:
        assert self.request.number is not None
        return self.request.number

    @property
    def state(self) -> State:
        """Where it stands; "approved" is on its way to be carried out."""
        if self.outcome is not None:
            return "carried out"
        if self.lapse is not None:
            return "lapsed"
        if self.decision is None:
            return "pending"
        return "approved" if body_of(self.decision, ApprovalDecided).approved else "rejected"

    @property
    def asked(self) -> dict[str, Any]:
        """The command that was asked for, without its tensors."""
        return dict(self.request.body["request"])


def approval_id(number: int) -> str:
    """The name of a request by its number."""
    return f"approval_{number}"


def key_of(number: int) -> str:
    """The idempotency key under which an approved write is carried out: once, whatever happens.

    No header can carry it.
    """
    return f"approval №{number}"


def find(store: EventStore, name: str) -> Approval:
    """A request by its id; NotFound otherwise."""
    prefix, _, digits = name.rpartition("_")
    known = digits.isascii() and digits.isdigit() and len(digits) < 16 and prefix == "approval"
    request = store.by_number(APPROVALS, int(digits)) if known else None
    if request is None:
        raise NotFound(f"there is no request for approval {name!r}", param="approval_id")
    return of(store, request)


def of(store: EventStore, request: Event) -> Approval:
    """What became of a request."""
    number = request.number
    assert number is not None
    note, decision = store.annotation(request.seq), store.by_number(DECISIONS, number)
    by = store.annotation(decision.seq) if decision else None
    return Approval(
        request,
        note.actor if note else None,
        note.reason if note else None,
        note.metadata if note else None,
        decision,
        by.actor if by else None,
        store.by_key(key_of(number)),
        store.by_number(LAPSES, number),
    )


def every(store: EventStore, *, limit: int) -> list[Approval]:
    """Requests, newest first."""
    requests = store.select(EventFilter(kinds=[APPROVAL_REQUESTED]), limit=limit)
    return [of(store, request) for request in requests]
