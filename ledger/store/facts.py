"""What a store keeps beside an event's header so that it can be found, and how it is checked.

The header is the event; these fields repeat parts of it. Whoever reads an event compares every one
of them with the header, so what a query found is what was recorded.
"""

from operator import attrgetter, eq
from typing import Any, NamedTuple

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import (
    STATE_CHANGING,
    UNREADABLE,
    Event,
    any_forward_only,
    decode,
    decode_page,
)


class Facts(NamedTuple):
    """One event as a store holds it; `changes_state` and `forward_only` are 0 or 1."""

    seq: int
    kind: str
    recorded_at: int
    node: int
    parent: int | None
    changes_state: int
    forward_only: int
    series: str | None
    number: int | None
    idempotency_key: str | None
    state_after: bytes
    payload_size: int
    header: bytes
    event_hash: bytes


_HEADER = Facts._fields.index("header")

# What an event has by the same name; the rest has a name of its own, or none.
_SAME = ("seq", "kind", "recorded_at", "node", "parent", "series", "number", "idempotency_key")
_TOO = ("state_after", "payload_size")
_of_event = attrgetter(*_SAME, *_TOO, "hash")
_of_columns = attrgetter(*_SAME, *_TOO, "event_hash")


def facts_of(event: Event) -> tuple[Any, ...]:
    """The fields of Facts, as the header says them."""
    return (
        event.seq,
        event.kind,
        event.recorded_at,
        event.node,
        event.parent,
        int(event.kind in STATE_CHANGING),
        int(event.forward_only),
        event.series,
        event.number,
        event.idempotency_key,
        event.state_after,
        event.payload_size,
        event.header,
        event.hash,
    )


def events_of(columns: Any, model: str) -> list[Event] | None:
    """The events of a page, where all is well; in `columns`, Facts, each field is its column.

    As `event_of` finds them one by one, in less than half the time; None where it has to be asked,
    for the words of what is wrong or for a change in a form that is rare.
    """
    headers = columns.header
    if (
        set(map(type, headers)) != {bytes}
        or columns.forward_only.count(0) != len(headers)
        or any_forward_only(headers)
    ):
        return None
    try:
        events = decode_page(headers)
    except (*UNREADABLE, CorruptLedger):
        return None
    moves = [event.kind in STATE_CHANGING for event in events]
    same = (
        moves == list(columns.changes_state)
        and all(map(eq, map(_of_event, events), zip(*_of_columns(columns), strict=True)))
        and all(event.model == model for event in events)
    )
    return events if same else None


def event_of(facts: tuple[Any, ...], model: str) -> Event:
    """The event of the fields of Facts; CorruptLedger names the seq and what does not match."""
    seq, header = facts[0], facts[_HEADER]
    if type(header) is not bytes:
        raise CorruptLedger(f"event {seq}: its header is not bytes", seq=seq)
    try:
        event = decode(header)
    except CorruptLedger as error:
        raise CorruptLedger(f"event {seq}: {error}", seq=seq) from None
    expected = facts_of(event)
    if facts != expected:
        wrong = [
            name
            for name, got, want in zip(Facts._fields, facts, expected, strict=True)
            if got != want
        ]
        raise CorruptLedger(
            f"event {seq}: {', '.join(wrong)} beside its header is not what the header says",
            seq=seq,
        )
    if event.model != model:
        raise CorruptLedger(
            f"event {seq} is in the log of {model!r} and names {event.model!r}", seq=seq
        )
    return event
