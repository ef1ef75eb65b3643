"""Events as the writers of a machine tell each other of them."""

import msgspec

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event, decode
from weightledger.ledger.sql.groups import Told
from weightledger.ledger.store import payloads
from weightledger.ledger.store.attached import Append

# Of a payload: larger ones are read where they are stored.
_MOST_BYTES = 128 * 1024


class _Body(msgspec.Struct, frozen=True, array_like=True, gc=False):
    header: bytes
    payload: bytes | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Body).decode


def told(append: Append) -> Told | None:
    """An event; None where its payload is stored elsewhere, or is not that small."""
    event, _, its = append
    if event.payload and its.inline is None:
        return None
    if its.inline is not None and len(its.inline) > _MOST_BYTES:
        return None
    return Told(event.seq, event.hash, _encode(_Body(event.header, its.inline)))


def heard(one: Told) -> tuple[Event, bytes | None]:
    """The event that was told of, and its payload, checked; CorruptLedger where it is none."""
    try:
        body = _decode(one.event)
    except msgspec.MsgspecError as error:
        raise CorruptLedger(f"what was told of event {one.seq} is unreadable: {error}") from None
    event = decode(body.header)
    if (event.seq, event.hash) != (one.seq, one.hash):
        raise CorruptLedger(f"what was told of event {one.seq} is another event")
    payloads.check_all([event], [body.payload])
    return event, body.payload
