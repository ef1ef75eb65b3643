"""Sealing: a draft gets its place in the log, its running values and its bytes."""

from dataclasses import dataclass

from msgspec.structs import force_setattr

from weightledger.ledger.events.bodies.protocol import EventBody, schema_of
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.events.event import (
    NO_WORDS,
    Annotation,
    BlobRef,
    Counts,
    Event,
    leaf_hash,
)
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


@dataclass(frozen=True, slots=True)
class Draft:
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
        before.applied + (kind == UPDATED),
        before.updates + (series == UPDATES),
        before.versions + (series == VERSIONS),
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
    counts, schema = event.counts, event.schema
    refs = [
        b'{"digest":"%s","size":%d}' % (ref.digest.hex().encode(), ref.size)
        for ref in event.payload
    ]
    return b"".join(
        (
            b"{",
            _number(b'"active":', event.active),
            _plain(b'"actor":', event.actor_digest),
            b'"body":%s,"counts":{"applied":%d,"updates":%d,"versions":%d},"format":%d,'
            % (body, counts.applied, counts.updates, counts.versions, FORMAT),
            _free(b'"idempotency_key":', event.idempotency_key),
            b'"kind":"%s",' % event.kind.encode(),
            _plain(b'"metadata":', event.metadata_digest),
            _free(b'"model":', event.model),
            b'"node":%d,' % event.node,
            _number(b'"number":', event.number),
            _number(b'"parent":', event.parent),
            b'"payload":[%s],' % b",".join(refs),
            _plain(b'"prev":', _hex(event.prev)),
            _plain(b'"reason":', event.reason_digest),
            b'"recorded_at":%d,' % event.recorded_at,
            _plain(b'"request_digest":', _hex(event.request_digest)),
            _free(b'"request_id":', event.request_id),
            _number(b'"schema":', None if schema == FIRST_SCHEMA else schema),
            b'"seq":%d,' % event.seq,
            _plain(b'"series":', event.series),
            b'"state_after":"%s",' % event.state_after.hex().encode(),
            _plain(b'"state_before":', _hex(event.state_before)),
            b'"state_seq":%d}' % event.state_seq,
        )
    )


def _number(name: bytes, value: int | None) -> bytes:
    return b"" if value is None else b"%s%d," % (name, value)


def _hex(digest: bytes | None) -> str | None:
    return None if digest is None else digest.hex()


def _plain(name: bytes, value: str | None) -> bytes:
    """A string of ours, in which nothing has to be escaped."""
    return b"" if value is None else b'%s"%s",' % (name, value.encode())


def _free(name: bytes, value: str | None) -> bytes:
    """A string of somebody else's."""
    return b"" if value is None else b"%s%s," % (name, canonical(value))
