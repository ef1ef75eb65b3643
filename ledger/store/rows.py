"""An event as a row of the table `events`, and back.

The header is the event; the other columns are indexes over it. Reading compares every one of them
with the header, so what a query found is what was recorded.
"""

from typing import Any

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events.event import STATE_CHANGING, Event, decode
from weightledger.ledger.sql.tables import SEQ_BITS, SEQ_MASK

COLUMNS = (
    "event_key",
    "model_id",
    "kind",
    "recorded_at",
    "node",
    "parent",
    "changes_state",
    "forward_only",
    "series",
    "number",
    "idempotency_key",
    "state_after",
    "payload_size",
    "header",
    "event_hash",
)
SELECT = f"SELECT {', '.join(COLUMNS)} FROM events"
INSERT = (
    f"INSERT INTO events ({', '.join(COLUMNS)}, payload)"
    f" VALUES ({', '.join('?' * len(COLUMNS))}, ?)"
)

_HEADER = COLUMNS.index("header")


def key_of(model_id: int, seq: int) -> int:
    """The primary key of an event; `seq` is clamped to those that a model can have.

    What is out of range gives a key that belongs to no event, so that it finds none.
    """
    return (model_id << SEQ_BITS) + max(-1, min(seq, SEQ_MASK))


def to_row(model_id: int, event: Event) -> tuple[Any, ...]:
    """The values of COLUMNS."""
    return (
        (model_id << SEQ_BITS) | event.seq,
        model_id,
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


def from_row(row: Any, model: str) -> Event:
    """The event of a row of COLUMNS; CorruptLedger names the seq and what does not match."""
    row = tuple(row)
    seq: int = row[0] & SEQ_MASK
    header = row[_HEADER]
    if type(header) is not bytes:
        raise CorruptLedger(f"event {seq}: its header is not bytes", seq=seq)
    try:
        event = decode(header)
    except CorruptLedger as error:
        raise CorruptLedger(f"event {seq}: {error}", seq=seq) from None
    expected = to_row(row[0] >> SEQ_BITS, event)
    if row != expected:
        wrong = [
            name for name, got, want in zip(COLUMNS, row, expected, strict=True) if got != want
        ]
        raise CorruptLedger(
            f"event {seq}: {', '.join(wrong)} in its row is not what its header says", seq=seq
        )
    if event.model != model:
        raise CorruptLedger(
            f"event {seq} is in the log of {model!r} and names {event.model!r}", seq=seq
        )
    return event
