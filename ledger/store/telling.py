"""Events, and what they led to, as the writers of a machine tell each other of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import UNREADABLE, Event, decode_page
from weightledger.ledger.sql.groups import NO_GROUP, Group, Told, ToldTensor
from weightledger.ledger.store.attached import Append

# Of a transaction: what is more is read where it is stored.
_MOST_BYTES = 256 * 1024


def told(appends: Sequence[Append], changed: Mapping[str, NDArray[Any]]) -> Group:
    """Events, and the lanes of tensors that they change as they are after them; nothing of what is
    large."""
    size = sum([len(event.header) for event, _, _ in appends])
    if size + sum([lanes.nbytes for lanes in changed.values()]) > _MOST_BYTES:
        return NO_GROUP
    last = appends[-1][0].seq
    events = [Told(event.seq, event.hash, event.header) for event, _, _ in appends]
    tensors = [ToldTensor(name, last, lanes.tobytes()) for name, lanes in changed.items()]
    return Group(tuple(events), tensors=tuple(tensors))


def heard(events: Sequence[Told]) -> list[Event]:
    """Events that were told of, checked against their hashes; CorruptLedger where one is none."""
    try:
        found = decode_page([one.header for one in events])
    except UNREADABLE as error:
        raise CorruptLedger(f"what was told of events is unreadable: {error!r}") from None
    for one, event in zip(events, found, strict=True):
        if (event.seq, event.hash) != (one.seq, one.hash):
            raise CorruptLedger(f"what was told of event {one.seq} is another event")
    return found
