"""What becomes durable with an event, beside its header and in the same transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from weightledger.ledger.blobs import Buffer
from weightledger.ledger.events import Annotation, Event


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An anchor: the whole state at a node, as a manifest blob naming tensor blobs.

    `size` is what restoring it reads, in bytes.
    """

    node: int
    manifest: bytes
    size: int


class Attached(msgspec.Struct, frozen=True):
    """What an event brings with it.

    `parameters` are full state names: of a first event all of the model's, of an `updated` one
    those it counts as an update of; other kinds are an update of none. `inline` is the payload
    where it is small (at most `events.INLINE_BYTES`), else None; `blobs` are larger pieces by
    digest. `dropped_snapshots` are nodes whose anchors are forgotten with this event.
    """

    parameters: Sequence[str] = ()
    inline: bytes | None = None
    blobs: Mapping[bytes, Buffer] = msgspec.field(default_factory=dict)
    snapshot: Snapshot | None = None
    dropped_snapshots: Sequence[int] = ()


NOTHING = Attached()
"""Of an event that is all in its header."""

Append = tuple[Event, Annotation, Attached]
"""An event that is to become durable, the words beside it, and what it brings with it."""
