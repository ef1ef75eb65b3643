"""Ranges of payloads, from the rows that hold small ones and from blobs."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain

from weightledger.ledger.blobs import BlobStore
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import INLINE_BYTES, Event
from weightledger.ledger.sql.backend import Execute
from weightledger.ledger.sql.bulk import pieces
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.store.payloads import ByteSpan, Portion, range_of

# A payload up to this long is read whole: a range of it would save less than asking for it costs.
SMALL_BYTES = 16 * 1024

_RANGES_AT_A_TIME = 100

Asked = tuple[Event, Sequence[ByteSpan]]
Inline = Mapping[tuple[int, int], memoryview]


def is_whole(event: Event, spans: Sequence[ByteSpan]) -> bool:
    """Whether what is asked of a payload comes to reading all of it."""
    if not spans:
        return False
    return event.payload_size <= SMALL_BYTES or spans[0] == (0, event.payload_size)


def inline_ranges(execute: Execute, key_of: Callable[[int], int], asked: Sequence[Asked]) -> Inline:
    """Ranges of payloads that stand in their events' rows, by seq and start."""
    ranges = [(event.seq, span) for event, spans in asked if is_inline(event) for span in spans]
    read: dict[tuple[int, int], memoryview] = {}
    for piece in pieces(ranges, _RANGES_AT_A_TIME):
        values = chain.from_iterable(
            (key_of(seq), span.start, span.stop - span.start) for seq, span in piece
        )
        for key, start, data in execute(_select(len(piece)), tuple(values)).fetchall():
            if isinstance(data, bytes):
                read[key & SEQ_MASK, start] = memoryview(data)
    return read


def portion(event: Event, spans: Sequence[ByteSpan], inline: Inline, blobs: BlobStore) -> Portion:
    """The ranges that were asked of a payload, wherever it is; CorruptLedger names the seq."""
    found = [
        (span.start, inline.get((event.seq, span.start)) or range_of(event, span, blobs))
        for span in spans
    ]
    for span, (_, data) in zip(spans, found, strict=True):
        if len(data) != span.stop - span.start:
            raise CorruptLedger(
                f"payload of event {event.seq} ends before byte {span.stop}", seq=event.seq
            )
    return Portion(event.payload_size, found)


def is_inline(event: Event) -> bool:
    """Whether a payload stands in its event's row."""
    return len(event.payload) == 1 and event.payload_size <= INLINE_BYTES


@lru_cache
def _select(count: int) -> str:
    """Ranges by (key, start, length); the first row says what type the values have."""
    first = "(CAST(? AS bigint), CAST(? AS integer), CAST(? AS integer))"
    return (
        f"WITH wanted (k, at, size) AS (VALUES {', '.join([first] + ['(?, ?, ?)'] * (count - 1))})"
        " SELECT k, at, substr(e.payload, at + 1, size)"
        " FROM wanted JOIN events e ON e.event_key = k"
    )
