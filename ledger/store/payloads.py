"""An event's payload, whole and checked against what its header says of it, or some ranges of it.

Where a tensor's part lies follows from the header: parts stand in the order of its changes, and it
says how long each is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from weightledger.ledger.blobs import BlobStore
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.tensors.digest import content_digest, content_digests


class ByteSpan(NamedTuple):
    """The bytes [start, stop) of a payload."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Portion:
    """Ranges of a payload of `size` bytes, in order: where each starts, and its bytes.

    Ranges are as they are stored: who uses them checks what comes of them. What `is_whole` was
    checked against the event's digests.
    """

    size: int
    pieces: Sequence[tuple[int, memoryview]]
    is_whole: bool = False

    @classmethod
    def whole(cls, payload: bytes) -> "Portion":
        return cls(len(payload), ((0, memoryview(payload)),), is_whole=True)

    def part(self, start: int, size: int) -> memoryview:
        """So many bytes from `start`; none where they were not asked for."""
        for at, data in self.pieces:
            if at <= start and start + size <= at + len(data):
                return data[start - at : start - at + size]
        return memoryview(b"")


def joined(spans: Sequence[ByteSpan]) -> list[ByteSpan]:
    """Ascending spans, those that touch or overlap as one."""
    together: list[ByteSpan] = []
    for span in spans:
        if span.start == span.stop:
            continue
        if together and span.start <= together[-1].stop:
            together[-1] = ByteSpan(together[-1].start, max(span.stop, together[-1].stop))
        else:
            together.append(span)
    return together


def range_of(event: Event, span: ByteSpan, blobs: BlobStore) -> memoryview:
    """A range of a payload whose pieces are blobs; CorruptLedger names the seq."""
    try:
        pieces = [blobs.read_range(digest, *within) for digest, within in pieces_of(event, span)]
    except CorruptLedger as error:
        raise CorruptLedger(f"payload of event {event.seq}: {error}", seq=event.seq) from None
    return memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))


def pieces_of(event: Event, span: ByteSpan) -> Iterator[tuple[bytes, ByteSpan]]:
    """The digests of the blobs that a range lies in, and the range within each."""
    at = 0
    for ref in event.payload:
        start, stop = max(span.start - at, 0), min(span.stop - at, ref.size)
        if start < stop:
            yield ref.digest, ByteSpan(start, stop)
        at += ref.size


def from_blobs(event: Event, blobs: BlobStore) -> bytes:
    """The payload of an event whose pieces are blobs; CorruptLedger names the seq."""
    try:
        return b"".join([blobs.get(ref.digest) for ref in event.payload])
    except CorruptLedger as error:
        raise CorruptLedger(f"payload of event {event.seq}: {error}", seq=event.seq) from None


def unchecked(event: Event, inline: object, blobs: BlobStore) -> Portion:
    """A payload as it is stored, in its event's row or, where that has none, in blobs.

    CorruptLedger names the seq of one that is missing or has another length.
    """
    size = event.payload_size
    if inline is None:
        data = np.empty(size, np.uint8)
        at = 0
        try:
            for ref in event.payload:
                blobs.read_into(ref.digest, data[at : at + ref.size], check=False)
                at += ref.size
        except CorruptLedger as error:
            raise CorruptLedger(f"payload of event {event.seq}: {error}", seq=event.seq) from None
        return Portion(size, ((0, data.data),))
    if not isinstance(inline, bytes | memoryview) or len(inline) != size:
        raise CorruptLedger(f"payload of event {event.seq} has another length", seq=event.seq)
    return Portion(size, ((0, memoryview(inline)),))


def check_all(events: Sequence[Event], payloads: Sequence[bytes | None]) -> None:
    """Check the payload of each event as `checked` does; None stands for one that is not inline."""
    digests = iter(content_digests([one for one in payloads if type(one) is bytes]))
    for event, payload in zip(events, payloads, strict=True):
        if payload is None:
            continue
        digest = next(digests) if type(payload) is bytes else None
        refs = event.payload
        if len(refs) != 1 or refs[0].digest != digest or refs[0].size != len(payload):
            checked(event, payload)


def checked(event: Event, payload: bytes) -> bytes:
    """An inline payload, if it is the pieces that the header names; CorruptLedger otherwise."""
    if not isinstance(payload, bytes):
        raise CorruptLedger(f"payload of event {event.seq} is not bytes", seq=event.seq)
    at = 0
    for ref in event.payload:
        if content_digest(payload[at : at + ref.size]) != ref.digest:
            break
        at += ref.size
    else:
        if at == len(payload):
            return payload
    raise CorruptLedger(f"payload of event {event.seq} does not match its digest", seq=event.seq)
