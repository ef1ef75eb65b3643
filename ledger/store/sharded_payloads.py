"""Payloads that several ranks wrote, given as one process would have written them: the frames of
each tensor in one piece, in the order of the header's list."""

from collections.abc import Sequence

from weightledger.ledger.blobs import BlobStore
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies.shards import Index, Shards, shards_of
from weightledger.ledger.store.payloads import ByteSpan, Portion, range_of

_FIELD = b'"shards":'


def is_sharded(event: Event) -> bool:
    """Whether several ranks wrote its payload; looks into the header of hardly any event."""
    return _FIELD in event.header and shards_of(event.body) is not None


def in_order(event: Event, payload: bytes) -> bytes:
    """The whole payload, as one process would have written it; CorruptLedger names the seq."""
    shards = shards_of(event.body)
    assert shards is not None
    index = _index(event, shards, memoryview(payload)[len(payload) - shards.index_bytes :])
    view = memoryview(payload)
    return b"".join(view[start:stop] for tensor in index.spans() for start, stop in tensor)


def portion(event: Event, spans: Sequence[ByteSpan], blobs: BlobStore) -> Portion:
    """Some ranges of what `in_order` gives; the index is read first."""
    shards = shards_of(event.body)
    assert shards is not None
    total = event.payload_size
    data = range_of(event, ByteSpan(total - shards.index_bytes, total), blobs)
    index = _index(event, shards, data)
    stored = [ByteSpan(*span) for tensor in index.spans() for span in tensor]
    pieces = []
    for wanted in spans:
        at, read = 0, []
        for there in stored:
            size = there.stop - there.start
            start, stop = max(wanted.start - at, 0), min(wanted.stop - at, size)
            if start < stop:
                read.append(
                    range_of(event, ByteSpan(there.start + start, there.start + stop), blobs)
                )
            at += size
        pieces.append((wanted.start, memoryview(read[0] if len(read) == 1 else b"".join(read))))
    return Portion(total - shards.index_bytes, pieces)


def _index(event: Event, shards: Shards, data: memoryview) -> Index:
    sizes = [change.size for change in event.changes]
    try:
        return Index.read(data, shards.ranks, sizes, event.payload_size)
    except CorruptLedger as error:
        raise CorruptLedger(f"payload of event {event.seq}: {error}", seq=event.seq) from None
