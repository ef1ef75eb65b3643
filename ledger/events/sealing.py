"""Sealing: a draft gets its place in the log, its running values and its bytes."""

from binascii import hexlify
from functools import lru_cache

import msgspec
from msgspec.structs import force_setattr

from weightledger.ledger.events.annotation import NO_WORDS, Annotation
from weightledger.ledger.events.bodies.protocol import EventBody, schema_of
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.events.event import BlobRef, Counts, Event, leaf_hash
from weightledger.ledger.events.kinds import (
    FIRST_SCHEMA,
    FORMAT,
    KEEP_ACTIVE,
    STATE_CHANGING,
    THIS_VERSION,
    UPDATED,
    UPDATES,
    VERSIONS,
)


class Draft(msgspec.Struct, frozen=True):
    """An event as its writer proposes it, before the log gives it a place.

    A draft of a state-changing kind names the digest it leads to; the node it leads to is the
    event itself, or `target_node` for a rollback. The kind's series numbers it: by its next number,
    or by `number` where the writer gives one. `active` is the number of the version that is
    active afterwards: KEEP_ACTIVE leaves it as it is, THIS_VERSION is the one being named.
    """

    body: EventBody
    state_after: bytes
    target_node: int | None = None
    number: int | None = None
    active: int | None = KEEP_ACTIVE
    payload: tuple[BlobRef, ...] = ()

    @property
    def kind(self) -> str:
        return self.body.KIND

    @property
    def series(self) -> str | None:
        return self.body.SERIES


_NOTHING = Counts()


def seal(
    draft: Draft,
    model: str,
    last: Event | None,
    now: int,
    *,
    annotation: Annotation = NO_WORDS,
    request_id: str | None = None,
    idempotency_key: str | None = None,
    request_digest: bytes | None = None,
) -> Event:
    """Give a draft its place after `last` (None for the first event of a model).

    `now` is UTC microseconds; a clock that stepped back is held at the last event's time. The rest
    is whoever's who asked: the header holds digests of the annotation's texts, and a retry is known
    by its key and the digest of its request.
    """
    kind, body, schema = draft.kind, canonical(draft.body.to_json()), schema_of(draft.body)
    series, active = draft.series, draft.active
    before = _NOTHING if last is None else last.counts
    number = draft.number
    if series == UPDATES:
        number = before.updates + 1
    elif series == VERSIONS:
        number = before.versions
    counts = Counts(
        applied=before.applied + (kind == UPDATED),
        updates=before.updates + (series == UPDATES),
        versions=before.versions + (series == VERSIONS),
    )
    if active == KEEP_ACTIVE:
        active = last.active if last else None
    elif active == THIS_VERSION:
        active = number
    seq = 0 if last is None else last.seq + 1
    node, parent, state_seq = seq, None, seq
    if kind in STATE_CHANGING:
        node = seq if draft.target_node is None else draft.target_node
        parent = last.node if last else None
    else:
        assert last is not None and draft.state_after == last.state_after
        node, state_seq = last.node, last.state_seq
    # By position: names would take as long as all the rest.
    event = Event(
        model,
        seq,
        kind,
        schema,
        max(now, last.recorded_at) if last else now,
        node,
        parent,
        state_seq,
        last.state_after if last else None,
        draft.state_after,
        counts,
        draft.payload,
        request_id,
        idempotency_key,
        request_digest,
        series,
        number,
        active,
        *_words_of(annotation),
        last.hash if last else None,
        b"",
        b"",
        body,  # so who holds the event sees the numbers that who reads it will see
    )
    # The header is what the event's other fields say; nobody has seen the event yet.
    header = _header(event, body)
    force_setattr(event, "header", header)
    force_setattr(event, "hash", leaf_hash(header))
    return event


def _header(event: Event, body: bytes) -> bytes:
    """The canonical JSON of an event whose body is canonical already.

    The names stand in the order that RFC 8785 sorts them into; a test compares with the library
    over every field there is.
    """
    # Written out: a call for each of the names takes longer than all they say.
    counts, key, asked = event.counts, event.idempotency_key, event.request_id
    pieces = [
        b'{"digest":"%s","size":%d}' % (hexlify(ref.digest), ref.size) for ref in event.payload
    ]
    return (
        b'{%s%s"body":%s,"counts":{"applied":%d,"updates":%d,"versions":%d},"format":%d,'
        b'%s"kind":"%s",%s"model":%s,"node":%d,%s%s"payload":[%s],%s%s"recorded_at":%d,'
        b'%s%s%s"seq":%d,%s"state_after":"%s",%s"state_seq":%d}'
    ) % (
        b"" if event.active is None else b'"active":%d,' % event.active,
        _said(b"actor", event.actor_digest),
        body,
        counts.applied,
        counts.updates,
        counts.versions,
        FORMAT,
        b"" if key is None else b'"idempotency_key":%s,' % canonical(key),
        event.kind.encode(),
        _said(b"metadata", event.metadata_digest),
        _text(event.model),
        event.node,
        b"" if event.number is None else b'"number":%d,' % event.number,
        b"" if event.parent is None else b'"parent":%d,' % event.parent,
        b",".join(pieces),
        b"" if event.prev is None else b'"prev":"%s",' % hexlify(event.prev),
        _said(b"reason", event.reason_digest),
        event.recorded_at,
        b""
        if event.request_digest is None
        else b'"request_digest":"%s",' % hexlify(event.request_digest),
        b"" if asked is None else b'"request_id":%s,' % canonical(asked),
        b"" if event.schema == FIRST_SCHEMA else b'"schema":%d,' % event.schema,
        event.seq,
        _said(b"series", event.series),
        hexlify(event.state_after),
        b""
        if event.state_before is None
        else b'"state_before":"%s",' % hexlify(event.state_before),
        event.state_seq,
    )


def _words_of(annotation: Annotation) -> tuple[str | None, str | None, str | None]:
    """What a header holds of an event's words, most of which have none."""
    if annotation is NO_WORDS:
        return None, None, None
    return annotation.digest("actor"), annotation.digest("reason"), annotation.digest("metadata")


def _said(name: bytes, text: str | None) -> bytes:
    """A field of plain text, if there is one."""
    return b"" if text is None else b'"%s":"%s",' % (name, text.encode())


@lru_cache(64)
def _text(name: str) -> bytes:
    """A model's name, which is in every one of its headers."""
    return canonical(name)
