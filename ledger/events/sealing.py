"""Sealing: a draft gets its place in the log, its running values and its bytes."""

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
        annotation.digest("actor"),
        annotation.digest("reason"),
        annotation.digest("metadata"),
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
    counts, refs = event.counts, event.payload
    parts = [b"{"]
    if event.active is not None:
        parts.append(b'"active":%d,' % event.active)
    if event.actor_digest is not None:
        parts.append(b'"actor":"%s",' % event.actor_digest.encode())
    parts.append(
        b'"body":%s,"counts":{"applied":%d,"updates":%d,"versions":%d},"format":%d,'
        % (body, counts.applied, counts.updates, counts.versions, FORMAT)
    )
    if event.idempotency_key is not None:
        parts.append(b'"idempotency_key":%s,' % canonical(event.idempotency_key))
    parts.append(b'"kind":"%s",' % event.kind.encode())
    if event.metadata_digest is not None:
        parts.append(b'"metadata":"%s",' % event.metadata_digest.encode())
    parts.append(b'"model":%s,"node":%d,' % (_text(event.model), event.node))
    if event.number is not None:
        parts.append(b'"number":%d,' % event.number)
    if event.parent is not None:
        parts.append(b'"parent":%d,' % event.parent)
    pieces = [b'{"digest":"%s","size":%d}' % (ref.digest.hex().encode(), ref.size) for ref in refs]
    parts.append(b'"payload":[%s],' % b",".join(pieces))
    if event.prev is not None:
        parts.append(b'"prev":"%s",' % event.prev.hex().encode())
    if event.reason_digest is not None:
        parts.append(b'"reason":"%s",' % event.reason_digest.encode())
    parts.append(b'"recorded_at":%d,' % event.recorded_at)
    if event.request_digest is not None:
        parts.append(b'"request_digest":"%s",' % event.request_digest.hex().encode())
    if event.request_id is not None:
        parts.append(b'"request_id":%s,' % canonical(event.request_id))
    if event.schema != FIRST_SCHEMA:
        parts.append(b'"schema":%d,' % event.schema)
    parts.append(b'"seq":%d,' % event.seq)
    if event.series is not None:
        parts.append(b'"series":"%s",' % event.series.encode())
    parts.append(b'"state_after":"%s",' % event.state_after.hex().encode())
    if event.state_before is not None:
        parts.append(b'"state_before":"%s",' % event.state_before.hex().encode())
    parts.append(b'"state_seq":%d}' % event.state_seq)
    return b"".join(parts)


@lru_cache(64)
def _text(name: str) -> bytes:
    """A model's name, which is in every one of its headers."""
    return canonical(name)
