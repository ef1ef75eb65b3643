"""Sealing: a draft gets its place in the log, its running values and its bytes."""

from dataclasses import dataclass
from typing import NamedTuple

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
    annotation: Annotation = NO_WORDS
    request_id: str | None = None
    idempotency_key: str | None = None
    request_digest: bytes | None = None

    @property
    def kind(self) -> str:
        return self.body.KIND

    @property
    def series(self) -> str | None:
        return self.body.SERIES


class _Place(NamedTuple):
    """Where an event stands in its log, and the running values there."""

    seq: int
    recorded_at: int
    node: int
    parent: int | None
    state_seq: int
    counts: Counts
    number: int | None
    active: int | None


def seal(draft: Draft, model: str, last: Event | None, now: int) -> Event:
    """Give a draft its place after `last` (None for the first event of a model).

    `now` is UTC microseconds; a clock that stepped back is held at the last event's time.
    """
    place = _place(draft, last, now)
    note = draft.annotation
    actor, reason, metadata = note.digest("actor"), note.digest("reason"), note.digest("metadata")
    body = canonical(draft.body.to_json())
    header = _header(draft, model, last, place, body, actor, reason, metadata)
    # By position: names would take as long as all the rest.
    return Event(
        model,
        place.seq,
        draft.kind,
        schema_of(draft.body),
        place.recorded_at,
        place.node,
        place.parent,
        place.state_seq,
        last.state_after if last else None,
        draft.state_after,
        place.counts,
        draft.payload,
        draft.request_id,
        draft.idempotency_key,
        draft.request_digest,
        draft.series,
        place.number,
        place.active,
        actor,
        reason,
        metadata,
        last.hash if last else None,
        header,
        leaf_hash(header),
        body,  # so who holds the event sees the numbers that who reads it will see
    )


def _place(draft: Draft, last: Event | None, now: int) -> _Place:
    seq = 0 if last is None else last.seq + 1
    changes_state = draft.kind in STATE_CHANGING
    before = last.counts if last else Counts()
    number = draft.number
    if draft.series == UPDATES:
        number = before.updates + 1
    elif draft.series == VERSIONS:
        number = before.versions
    counts = Counts(
        updates=before.updates + (draft.series == UPDATES),
        applied=before.applied + (draft.kind == UPDATED),
        versions=before.versions + (draft.series == VERSIONS),
    )
    active = draft.active
    if active == KEEP_ACTIVE:
        active = last.active if last else None
    elif active == THIS_VERSION:
        active = number
    if not changes_state:
        assert last is not None and draft.state_after == last.state_after
        node = last.node
    else:
        node = seq if draft.target_node is None else draft.target_node
    return _Place(
        seq=seq,
        recorded_at=max(now, last.recorded_at) if last else now,
        node=node,
        parent=last.node if last and changes_state else None,
        state_seq=seq if last is None or changes_state else last.state_seq,
        counts=counts,
        number=number,
        active=active,
    )


def _header(
    draft: Draft,
    model: str,
    last: Event | None,
    place: _Place,
    body: bytes,
    actor: str | None,
    reason: str | None,
    metadata: str | None,
) -> bytes:
    """The canonical JSON of an event whose body is canonical already.

    The names stand in the order that RFC 8785 sorts them into; a test compares with the library
    over every field there is.
    """
    counts, schema = place.counts, schema_of(draft.body)
    refs = [
        b'{"digest":"%s","size":%d}' % (ref.digest.hex().encode(), ref.size)
        for ref in draft.payload
    ]
    return b"".join(
        (
            b"{",
            _number(b'"active":', place.active),
            _plain(b'"actor":', actor),
            b'"body":%s,"counts":{"applied":%d,"updates":%d,"versions":%d},"format":%d,'
            % (body, counts.applied, counts.updates, counts.versions, FORMAT),
            _free(b'"idempotency_key":', draft.idempotency_key),
            b'"kind":"%s",' % draft.kind.encode(),
            _plain(b'"metadata":', metadata),
            _free(b'"model":', model),
            b'"node":%d,' % place.node,
            _number(b'"number":', place.number),
            _number(b'"parent":', place.parent),
            b'"payload":[%s],' % b",".join(refs),
            _plain(b'"prev":', last.hash.hex() if last else None),
            _plain(b'"reason":', reason),
            b'"recorded_at":%d,' % place.recorded_at,
            _plain(
                b'"request_digest":', draft.request_digest.hex() if draft.request_digest else None
            ),
            _free(b'"request_id":', draft.request_id),
            _number(b'"schema":', None if schema == FIRST_SCHEMA else schema),
            b'"seq":%d,' % place.seq,
            _plain(b'"series":', draft.series),
            b'"state_after":"%s",' % draft.state_after.hex().encode(),
            _plain(b'"state_before":', last.state_after.hex() if last else None),
            b'"state_seq":%d}' % place.state_seq,
        )
    )


def _number(name: bytes, value: int | None) -> bytes:
    return b"" if value is None else b"%s%d," % (name, value)


def _plain(name: bytes, value: str | None) -> bytes:
    """A string of ours, in which nothing has to be escaped."""
    return b"" if value is None else b'%s"%s",' % (name, value.encode())


def _free(name: bytes, value: str | None) -> bytes:
    """A string of somebody else's."""
    return b"" if value is None else b"%s%s," % (name, canonical(value))
