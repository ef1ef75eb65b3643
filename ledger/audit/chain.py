"""The chain: of every event its row, hash, place, running totals and annotation, not its payload.

An update, and nearly all events are, is written anew: from its row, the event before it and the few
facts that its header alone has. Canonical JSON is one sequence of bytes for what it says, so where
the header equals what was written every field of both is right. Any other event, and a header that
differs, is decoded and checked field by field, which finds the words for what is wrong. What an
update's body says, and how it is written, is checked where its state is rebuilt.

Where the hashes of 256 events stand together they are a tile of the hash tree, whose root is given
to who checks the tree: see `ledger.audit.tree`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import msgspec
import orjson

from weightledger.ledger import events
from weightledger.ledger.errors import CorruptLedger, InvalidRequest
from weightledger.ledger.events import (
    FORMAT,
    LEAF_PREFIX,
    STATE_CHANGING,
    UPDATED,
    UPDATES,
    Annotation,
    Counts,
    Event,
    annotation_digest,
    merkle,
)
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.events.changes import FACTORS
from weightledger.ledger.history.redactions import Redactions
from weightledger.ledger.store import TILE, EventStore, Note, RawEvent
from weightledger.ledger.store.facts import event_of

Progress = Callable[[int, int], None]

_FACTORS = f'"form":"{FACTORS[:-2]}'.encode()  # of any revision; a search for this end is quick
Redacted = Callable[[int, str], bool]

_SILENT: Note = (0, None, None, None, b"")


@dataclass(slots=True)
class ChainPosition:
    """Where the log stands after an event: what the next one has to continue. Digests are hex."""

    seq: int = -1
    hash: str | None = None
    state: str | None = None
    recorded_at: int = 0
    node: int | None = None
    state_seq: int | None = None
    applied: int = 0
    updates: int = 0
    versions: int = 0

    def move(self, event: Event) -> None:
        """Stand after an event."""
        self.seq, self.hash, self.state = event.seq, event.hash.hex(), event.state_after.hex()
        self.recorded_at, self.node, self.state_seq = event.recorded_at, event.node, event.state_seq
        counts = event.counts
        self.applied, self.updates, self.versions = counts.applied, counts.updates, counts.versions


def check(
    store: EventStore, start: int, stop: int, progress: Progress | None = None
) -> list[bytes]:
    """Check the events start <= seq < stop; CorruptLedger names the first that does not hold.

    The event before `start` is taken as it is: whoever checks the events before vouches for it.
    Gives the roots of the tiles of the hash tree that lie within these events.
    """
    place = ChainPosition()
    if start > 0:
        before = store.event(start - 1)
        if before is None:
            raise CorruptLedger(f"event {start - 1} is missing", seq=start - 1)
        place.move(before)
    redacted = Redactions(store)
    tiles: list[bytes] = []
    hashes: list[bytes] = []
    before_first_tile = -start % TILE
    for page, annotations in store.raw(start, stop):
        for row in page:
            check_event(row, annotations.get(row[0]), store.model, place, redacted)
            hashes.append(row[-1])
        del hashes[:before_first_tile]
        before_first_tile = 0
        whole = len(hashes) // TILE * TILE
        tiles += [merkle.fold(hashes[at : at + TILE]) for at in range(0, whole, TILE)]
        del hashes[:whole]
        if progress is not None:
            progress(place.seq + 1, stop)
    if place.seq + 1 != stop:
        raise CorruptLedger(f"event {place.seq + 1} is missing", seq=place.seq + 1)
    return tiles


def check_event(
    row: RawEvent,
    note: Note | None,
    model: str,
    place: ChainPosition,
    redacted: Redacted = lambda seq, text: False,
) -> None:
    """Check that an event and what stands beside it follow `place`, and move there.

    `redacted` says whether a text that is missing was taken away as an event of the log says.
    """
    if _written_anew(row, note, model, place):
        return
    seq = row[0]
    if seq != place.seq + 1:
        raise CorruptLedger(
            f"event {place.seq + 1} is missing, event {seq} follows", seq=place.seq + 1
        )
    event = event_of(row, model)
    _check_place(event, model, place)
    _check_annotation(event, None if note is None else Annotation(*note[1:]), redacted)
    check_form(event)
    place.move(event)


class _Piece(msgspec.Struct, gc=False):
    """A piece of a payload, as a header says it."""

    digest: str
    size: int


class _Counts(msgspec.Struct, gc=False):
    applied: int
    updates: int
    versions: int


class _Own(msgspec.Struct, gc=False):
    """What neither the row of an update nor the event before it say."""

    body: msgspec.Raw
    payload: list[_Piece]
    active: int | None = None
    request_digest: str | None = None
    request_id: str | None = None
    schema: int | None = None


class _Header(msgspec.Struct, gc=False, omit_defaults=True, kw_only=True):
    """A header's fields in the order of RFC 8785; what is None is not there."""

    active: int | None = None
    actor: str | None = None
    body: msgspec.Raw
    counts: _Counts
    format: int
    kind: str
    metadata: str | None = None
    model: str
    node: int
    number: int
    parent: int | None = None
    payload: list[_Piece]
    prev: str | None = None
    reason: str | None = None
    recorded_at: int
    request_digest: str | None = None
    request_id: str | None = None
    schema: int | None = None
    seq: int
    series: str
    state_after: str
    state_before: str | None = None
    state_seq: int


_own = msgspec.json.Decoder(_Own).decode
_encode = msgspec.json.Encoder().encode


def _written_anew(row: RawEvent, note: Note | None, model: str, place: ChainPosition) -> bool:
    """Whether an update is what its row and `place` come to, byte for byte; moves there if so.

    False for whatever is unusual: the check of every field has the last word.
    """
    seq, _, recorded_at, *_, state, size, header, event_hash = row
    updates = place.updates + 1
    expected = (place.seq + 1, UPDATED, place.seq + 1, place.node, 1, 0, UPDATES, updates, None)
    if (
        row[:2] + row[3:10] != expected
        or recorded_at < place.recorded_at
        or type(header) is not bytes
        or sha256(LEAF_PREFIX + header).digest() != event_hash
        or _FACTORS in header
    ):
        return False
    try:
        own = _own(header)
        if not header.isascii():
            header.decode()  # what the decoder passes over is text as well
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    _, actor, reason, metadata, salt = note or _SILENT
    after, applied = state.hex(), place.applied + 1
    written = _Header(
        active=own.active,
        actor=None if actor is None else annotation_digest(salt, "actor", actor),
        body=own.body,
        counts=_Counts(applied, updates, place.versions),
        format=FORMAT,
        kind=UPDATED,
        metadata=None if metadata is None else annotation_digest(salt, "metadata", metadata),
        model=model,
        node=seq,
        number=updates,
        parent=place.node,
        payload=own.payload,
        prev=place.hash,
        reason=None if reason is None else annotation_digest(salt, "reason", reason),
        recorded_at=recorded_at,
        request_digest=own.request_digest,
        request_id=own.request_id,
        schema=own.schema,
        seq=seq,
        series=UPDATES,
        state_after=after,
        state_before=place.state,
        state_seq=seq,
    )
    if (
        _encode(written) != header
        or sum([piece.size for piece in own.payload]) != size
        or not _digests(own)
    ):
        return False
    place.seq = place.node = place.state_seq = seq
    place.hash, place.state, place.recorded_at = event_hash.hex(), after, recorded_at
    place.applied, place.updates = applied, updates
    return True


def _digests(own: _Own) -> bool:
    """Whether what should be a digest is one."""
    try:
        for piece in own.payload:
            if len(bytes.fromhex(piece.digest)) != 32:
                return False
        return own.request_digest is None or len(bytes.fromhex(own.request_digest)) == 32
    except ValueError:
        return False


def _check_place(event: Event, model: str, place: ChainPosition) -> None:
    """The event follows `place`, and its running values are what they must be."""
    expected: dict[str, object] = {
        "model": model,
        "prev": _bytes(place.hash),
        "state_before": _bytes(place.state),
        "counts": Counts(
            place.updates + (event.series == UPDATES),
            place.applied + (event.kind == UPDATED),
            place.versions + (event.series == events.VERSIONS),
        ),
    }
    if event.kind not in STATE_CHANGING:
        expected |= {"node": place.node, "parent": None, "state_seq": place.state_seq}
        expected |= {"state_after": _bytes(place.state)}
    else:
        expected |= {"parent": place.node, "state_seq": event.seq}
        if event.kind != events.ROLLED_BACK:
            expected["node"] = event.seq
    if event.series == UPDATES:
        expected["number"] = place.updates + 1
    if event.series == events.VERSIONS:
        expected["number"] = place.versions
    for field, value in expected.items():
        if getattr(event, field) != value:
            raise CorruptLedger(
                f"event {event.seq}: {field} is {_shown(getattr(event, field))},"
                f" expected {_shown(value)}",
                seq=event.seq,
            )
    if event.recorded_at < place.recorded_at:
        raise CorruptLedger(
            f"event {event.seq} was recorded before event {place.seq}", seq=event.seq
        )


def _check_annotation(event: Event, note: Annotation | None, redacted: Redacted) -> None:
    for field in ("actor", "reason", "metadata"):
        recorded, there = getattr(event, f"{field}_digest"), note.digest(field) if note else None
        if recorded is not None and there is None and redacted(event.seq, field):
            continue
        if recorded != there:
            raise CorruptLedger(
                f"event {event.seq}: its {field} is not the one recorded", seq=event.seq
            )


def check_form(event: Event) -> None:
    """The header is canonical: a reader of another make cannot take it for something else."""
    try:
        same = canonical(orjson.loads(event.header)) == event.header
    except InvalidRequest:
        same = False
    if not same:
        raise CorruptLedger(f"event {event.seq}: its header is not canonical JSON", seq=event.seq)


def _bytes(hexadecimal: str | None) -> bytes | None:
    return None if hexadecimal is None else bytes.fromhex(hexadecimal)


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)
