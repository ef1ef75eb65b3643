"""An event as a row of the table `events`, and back: a key, the model's id, and its facts."""

from collections.abc import Iterable, Sequence
from typing import Any

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.sql.layout import SEQ_BITS, SEQ_MASK
from weightledger.ledger.store.facts import Facts, event_of, events_of, facts_of

_FACTS = Facts._fields[1:]  # the seq is in the key
COLUMNS = ("event_key", "model_id", *_FACTS)
_END = len(COLUMNS)
SELECT = f"SELECT {', '.join(COLUMNS)} FROM events"
SELECT_WITH_PAYLOAD = f"SELECT {', '.join(COLUMNS)}, payload FROM events"
# Bounds of keys are given twice: PostgreSQL's planner does not take them from one to the other.
SELECT_RAW = (
    f"SELECT e.event_key & {SEQ_MASK}, {', '.join(f'e.{name}' for name in _FACTS)},"
    " a.actor, a.reason, a.metadata, a.salt FROM events e"
    " LEFT JOIN annotations a ON a.event_key = e.event_key AND a.event_key BETWEEN ? AND ?"
)
INSERT = (
    f"INSERT INTO events ({', '.join(COLUMNS)}, payload)"
    f" VALUES ({', '.join('?' * len(COLUMNS))}, ?)"
)
# The same where FROM … WHERE … follows, which does not tell the types of values.
_KINDS = {
    **dict.fromkeys(("kind", "series", "idempotency_key"), "text"),
    **dict.fromkeys(("state_after", "header", "event_hash", "payload"), "bytea"),
}
TYPED = ", ".join(f"CAST(? AS {_KINDS.get(name, 'bigint')})" for name in (*COLUMNS, "payload"))
INSERT_ROWS = f"INSERT INTO events ({', '.join(COLUMNS)}, payload)"
INSERT_IF = f"{INSERT_ROWS} SELECT {TYPED}"


def key_of(model_id: int, seq: int) -> int:
    """The primary key of an event; `seq` is clamped to those that a model can have.

    What is out of range gives a key that belongs to no event, so that it finds none.
    """
    return (model_id << SEQ_BITS) + max(-1, min(seq, SEQ_MASK))


def to_row(model_id: int, event: Event) -> tuple[Any, ...]:
    """The values of COLUMNS."""
    seq, *facts = facts_of(event)
    return ((model_id << SEQ_BITS) | seq, model_id, *facts)


def from_rows(page: Sequence[Any], model_id: int, model: str) -> Iterable[Event]:
    """`from_row` of each, which are read together; CorruptLedger in the place of the first that is
    none. In a row more may stand behind COLUMNS."""
    if not page:
        return ()
    columns: list[Any] = list(zip(*page, strict=True))
    keys, models, facts = columns[0], columns[1], columns[2:_END]
    first = model_id << SEQ_BITS
    if set(models) == {model_id} and first <= min(keys) and max(keys) <= first + SEQ_MASK:
        seqs: Any = [key - first for key in keys]
        events = events_of(Facts(seqs, *facts), model)
        if events is not None:
            return events
    return (from_row(row[:_END], model_id, model) for row in page)


def missing(key: int) -> CorruptLedger:
    """The error for an event that has to be there."""
    seq = key & SEQ_MASK
    return CorruptLedger(f"event {seq} is missing", seq=seq)


def altered(key: int) -> CorruptLedger:
    """The error for an event whose header is not the one that was hashed."""
    seq = key & SEQ_MASK
    return CorruptLedger(f"event {seq}: its header does not match its hash", seq=seq)


def require_each(read: Sequence[Any], keys: Iterable[int]) -> None:
    """CorruptLedger for the first of the keys that no row has, in which the key stands first."""
    there = {row[0] for row in read}
    for key in keys:
        if key not in there:
            raise missing(key)


def from_row(row: Any, model_id: int, model: str) -> Event:
    """The event of a row of COLUMNS; CorruptLedger names the seq and what does not match."""
    key = row[0]
    seq = key & SEQ_MASK
    if row[1] != model_id or key >> SEQ_BITS != model_id:
        raise CorruptLedger(f"event {seq}: model_id in its row is not the model's", seq=seq)
    return event_of((seq, *row[2:]), model)
