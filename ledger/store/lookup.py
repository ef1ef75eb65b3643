"""Single events, found by what is known of them, and what stands beside them.

Each costs a look into an index, whatever the length of the log; `ledger.store.EventLookup` says
what each of them gives.
"""

from collections.abc import Iterable, Mapping, Sequence

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Annotation, Event
from weightledger.ledger.sql.bulk import marks, pieces
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.store import StateChange, rows, search
from weightledger.ledger.store.model_rows import ModelRows

_MOST_NUMBER = (1 << 63) - 1

LAST = f"{rows.SELECT} WHERE event_key BETWEEN ? AND ? ORDER BY event_key DESC LIMIT 1"
ANNOTATIONS = f"SELECT event_key & {SEQ_MASK}, actor, reason, metadata, salt FROM annotations"
_BY_KEY = f"{rows.SELECT} WHERE event_key = ?"
_STATE_CHANGE = (
    f"{rows.SELECT} WHERE event_key BETWEEN ? AND ? AND changes_state = 1"
    " ORDER BY event_key DESC LIMIT 1 OFFSET ?"
)
_BY_STATE = (
    f"{rows.SELECT} WHERE event_key BETWEEN ? AND ? AND changes_state = 1 AND state_after = ?"
    " ORDER BY event_key DESC LIMIT 1"
)
_STATES_BETWEEN = (
    "SELECT max(event_key) FROM events WHERE event_key BETWEEN ? AND ? AND changes_state = 1"
    " AND state_after BETWEEN ? AND ? GROUP BY state_after ORDER BY state_after LIMIT ?"
)
_BY_NUMBER = f"{rows.SELECT} WHERE model_id = ? AND series = ? AND number = ?"
_LAST_NUMBER = (  # numbers that are null are not in the index
    "SELECT max(number) FROM events WHERE model_id = ? AND series = ? AND number IS NOT NULL"
)
_KEY = "SELECT event_key FROM events WHERE model_id = ? AND idempotency_key = ?"
_STATE_CHANGES = (
    f"SELECT event_key & {SEQ_MASK}, kind, node, parent, payload_size, forward_only FROM events"
    " WHERE event_key BETWEEN ? AND ? AND changes_state = 1 ORDER BY event_key"
)
_UPDATE_COUNTS = (
    "SELECT p.name, (SELECT t.number FROM touches t WHERE t.parameter_id = p.parameter_id"
    " ORDER BY t.event_key DESC LIMIT 1) FROM parameters p WHERE p.model_id = ? ORDER BY p.name"
)


def head(of: ModelRows) -> Event:
    """The last event."""
    event = of.one(LAST, *of.span())
    if event is None:
        raise CorruptLedger(f"the log of {of.model!r} has no event", seq=0)
    return event


def by_seq(of: ModelRows, seq: int) -> Event | None:
    """One event; CorruptLedger when the row does not match its header."""
    return of.one(_BY_KEY, of.key(seq))


def by_seqs(of: ModelRows, seqs: Iterable[int]) -> Mapping[int, Event]:
    """Some events by seq; CorruptLedger when a row does not match its header."""
    events: dict[int, Event] = {}
    with of.database.look() as execute:
        for piece in pieces(map(of.key, seqs)):
            read = execute(f"{rows.SELECT} WHERE event_key IN ({marks(len(piece))})", piece)
            events |= {event.seq: event for event in of.events(read.fetchall())}
    return events


def annotations(of: ModelRows, seqs: Iterable[int]) -> Mapping[int, Annotation]:
    """The free text beside each of some events, by seq; those without are left out."""
    texts: dict[int, Annotation] = {}
    with of.database.look() as execute:
        for piece in pieces(map(of.key, seqs)):
            read = execute(f"{ANNOTATIONS} WHERE event_key IN ({marks(len(piece))})", piece)
            texts |= {seq: Annotation(*rest) for seq, *rest in read.fetchall()}
    return texts


def by_number(of: ModelRows, series: str, number: int) -> Event | None:
    """The event that is update n ("updates") or version n ("versions")."""
    if not 0 <= number <= _MOST_NUMBER:
        return None
    return of.one(_BY_NUMBER, of.model_id, series, number)


def last_number(of: ModelRows, series: str) -> int | None:
    """The highest number of a series; None before the first."""
    with of.database.look() as execute:
        (number,) = execute(_LAST_NUMBER, (of.model_id, series)).fetchone()
    return None if number is None else int(number)


def by_key(of: ModelRows, key: str) -> Event | None:
    """The event that used this idempotency key; CorruptLedger when its indexes disagree."""
    with of.database.read() as execute:
        query = f"SELECT ({_KEY}), ({of.database.backend.KEY_AGAIN})"
        one, other = execute(query, (of.model_id, key, key, of.model_id)).fetchone()
        row = None if one is None else execute(_BY_KEY, (one,)).fetchone()
    if one != other or (one is not None and row is None):
        raise CorruptLedger(
            f"the indexes of idempotency keys do not agree on {key!r}. Nothing was recorded;"
            " run `weightledger verify`, then `weightledger repair`"
        )
    event = None if row is None else of.event(row)
    if event is not None and event.idempotency_key != key:
        raise CorruptLedger(
            f"the index of idempotency keys is damaged: it has event {event.seq} under {key!r}",
            seq=event.seq,
        )
    return event


def by_state(of: ModelRows, digest: bytes) -> Event | None:
    """The last state-changing event that led to this state digest."""
    return of.one(_BY_STATE, *of.span(), digest)


def states_between(of: ModelRows, first: bytes, last: bytes, limit: int) -> list[Event]:
    """Of each state whose digest lies within bounds, the last event that led to it."""
    with of.database.read() as execute:
        keys = execute(_STATES_BETWEEN, (*of.span(), first, last, limit)).fetchall()
        leading = [execute(_BY_KEY, (key,)).fetchone() for (key,) in keys]
    return [of.event(row) for row in leading]


def at_time(of: ModelRows, recorded_at: int) -> Event | None:
    """The last event recorded at or before a time (UTC microseconds)."""
    with of.database.read() as execute:
        seq = search.seq_at(execute, of.model_id, recorded_at)
    return by_seq(of, seq)


def recorded_before(of: ModelRows, moments: Sequence[int]) -> list[int]:
    """How many events were recorded before each of these times (UTC microseconds)."""
    with of.database.read() as execute:
        return [search.seq_at(execute, of.model_id, moment - 1) + 1 for moment in moments]


def state_change_before(of: ModelRows, seq: int, back: int) -> Event | None:
    """The state-changing event `back` places before the one at or before `seq`."""
    if back < 0:
        return None
    return of.one(_STATE_CHANGE, of.key(0), of.key(seq), min(back, SEQ_MASK))


def state_changes(of: ModelRows, start: int, stop: int) -> list[StateChange]:
    """State-changing events with start <= seq < stop, in order."""
    bounds = of.key(max(start, 0)), of.key(stop - 1)
    with of.database.look() as execute:
        return list(map(StateChange._make, execute(_STATE_CHANGES, bounds)))


def update_counts(of: ModelRows) -> Mapping[str, int]:
    """How many applied updates touched each full state name (those with at least one)."""
    with of.database.look() as execute:
        counts = execute(_UPDATE_COUNTS, (of.model_id,)).fetchall()
    return {name: count for name, count in counts if count is not None}
