"""An event's payload, put together and checked against what its header says of it."""

from weightledger.ledger.blobs import BlobStore
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.tensors.digest import content_digest


def from_blobs(event: Event, blobs: BlobStore) -> bytes:
    """The payload of an event whose pieces are blobs; CorruptLedger names the seq."""
    try:
        return b"".join([blobs.get(ref.digest) for ref in event.payload])
    except CorruptLedger as error:
        raise CorruptLedger(f"payload of event {event.seq}: {error}", seq=event.seq) from None


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
