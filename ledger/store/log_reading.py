"""Reading a log in order: events checked, as they are stored, and their payloads."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import eq
from typing import Any

from weightledger.ledger.blobs import BlobStore
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.sql.bulk import marks, pieces
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.store import RawEvent, payloads, portions, rows, sharded_payloads
from weightledger.ledger.store.model_rows import ModelRows
from weightledger.ledger.store.payloads import Portion

# Rows that are read and worked on together: with their payloads they stay in the processor's cache,
# without which fetching them takes half as long again.
_PAGE = 256

_RANGE = f"{rows.SELECT} WHERE event_key BETWEEN ? AND ? ORDER BY event_key LIMIT ?"
_RAW = (
    f"{rows.SELECT_RAW} WHERE e.event_key BETWEEN ? AND ? AND e.model_id = ? ORDER BY e.event_key"
)
_INLINE = f"SELECT event_key & {SEQ_MASK}, payload FROM events WHERE event_key IN"


def scan(of: ModelRows, start: int, stop: int | None) -> Iterator[Event]:
    """See `AppendLog.scan`. Reads in pages and holds no transaction between them."""
    expected = of.key(max(start, 0))
    last = of.key(SEQ_MASK if stop is None else stop - 1)
    while True:
        with of.database.look() as execute:
            page = execute(_RANGE, (expected, last, _PAGE)).fetchall()
        yield from in_order(of, page, expected)
        expected += len(page)
        if len(page) < _PAGE:
            return


def in_order(of: ModelRows, page: Sequence[Any], first: int) -> Iterable[Event]:
    """The events of rows, whose keys have to follow one on another from `first`."""
    keys = range(first, first + len(page))
    if all(map(eq, keys, [row[0] for row in page])):
        return of.events(page)
    return _up_to_gap(of, page, first)


def _up_to_gap(of: ModelRows, page: Sequence[Any], first: int) -> Iterator[Event]:
    gap = next(at for at, row in enumerate(page) if row[0] != first + at)
    yield from of.events(page[:gap])
    raise rows.missing(first + gap)


def raw(of: ModelRows, start: int, stop: int) -> Iterator[list[RawEvent]]:
    """See `RawLog.raw`."""
    for first in range(start, stop, _PAGE):
        bounds = of.key(first), of.key(min(first + _PAGE, stop) - 1)
        with of.database.look() as execute:
            page = execute(_RAW, (*bounds, *bounds, of.model_id)).fetchall()
        yield page


def payloads_of(of: ModelRows, events: Sequence[Event], blobs: BlobStore) -> list[bytes]:
    """See `AppendLog.payloads`."""
    stored = stored_payloads_of(of, events, blobs)
    return [
        sharded_payloads.in_order(event, payload) if sharded_payloads.is_sharded(event) else payload
        for event, payload in zip(events, stored, strict=True)
    ]


def stored_payloads_of(of: ModelRows, events: Sequence[Event], blobs: BlobStore) -> list[bytes]:
    """See `AppendLog.stored_payload`."""
    inline: dict[int, bytes | None] = {}
    with of.database.look() as execute:
        for piece in pieces(of.key(event.seq) for event in events):
            inline.update(execute(f"{_INLINE} ({marks(len(piece))})", tuple(piece)).fetchall())
    return [_payload(event, inline, blobs) for event in events]


def unchecked_of(of: ModelRows, events: Sequence[Event], blobs: BlobStore) -> list[Portion]:
    """See `AppendLog.unchecked`. The order of what several ranks wrote is theirs, so that is
    checked."""
    sharded = [event for event in events if sharded_payloads.is_sharded(event)]
    read = dict(zip((event.seq for event in sharded), payloads_of(of, sharded, blobs), strict=True))
    inline: dict[int, Any] = {}
    with of.database.look(lent=True) as execute:
        for piece in pieces(of.key(event.seq) for event in events if portions.is_inline(event)):
            inline.update(execute(f"{_INLINE} ({marks(len(piece))})", tuple(piece)).fetchall())
    return [
        Portion.whole(read[event.seq])
        if event.seq in read
        else payloads.unchecked(event, inline.get(event.seq), blobs)
        for event in events
    ]


def portions_of(of: ModelRows, asked: Sequence[portions.Asked], blobs: BlobStore) -> list[Portion]:
    """See `AppendLog.portions`."""
    whole = [event for event, spans in asked if portions.is_whole(event, spans)]
    read = dict(zip((event.seq for event in whole), payloads_of(of, whole, blobs), strict=True))
    with of.database.look() as execute:
        parts = [one for one in asked if one[0].seq not in read]
        inline = portions.inline_ranges(execute, of.key, parts)
    return [
        Portion.whole(read[event.seq])
        if event.seq in read
        else sharded_payloads.portion(event, spans, blobs)
        if sharded_payloads.is_sharded(event)
        else portions.portion(event, spans, inline, blobs)
        for event, spans in asked
    ]


def _payload(event: Event, inline: Mapping[int, bytes | None], blobs: BlobStore) -> bytes:
    if event.seq not in inline:
        raise CorruptLedger(f"event {event.seq} is missing", seq=event.seq)
    held = inline[event.seq]
    return payloads.from_blobs(event, blobs) if held is None else payloads.checked(event, held)
