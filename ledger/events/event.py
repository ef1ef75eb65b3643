"""Events: what the log is made of.

An event is one immutable fact about one model. Its header is canonical JSON (RFC 8785); the exact
bytes are stored and hashed, so a third party can check them without this package. Headers hold
digests and facts, never tensors; free text that may have to be forgotten one day (actor, reason,
metadata) enters a header only as a salted SHA-256 and lives in a side table.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import orjson
from msgspec.structs import force_setattr

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events.changes import FACTORS, WHOLE, TensorChange
from weightledger.ledger.events.kinds import (
    FIRST_SCHEMA,
    FORMAT,
    IN_BLOBS,
    INLINE_BYTES,
    LEAF_PREFIX,
    UPDATE_REJECTED,
    UPDATED,
    VERSION_CREATED,
)

# What a header has in it where its body says so, and seldom otherwise: most bodies need not be
# decoded. (In a string the quotes would be escaped.)
_FORM_OF_FACTORS = b'"form":"%s"' % FACTORS.encode()
_FORM_OF_WHOLE = b'"form":"%s"' % WHOLE.encode()
_IN_BLOBS = b'"where":"%s"' % IN_BLOBS.encode()


class BlobRef(msgspec.Struct, frozen=True, gc=False):
    """A content-addressed piece of payload: its digest (32 bytes) and its size in bytes."""

    digest: bytes
    size: int


class Counts(msgspec.Struct, frozen=True, gc=False):
    """Running totals after an event: updates applied, updates tried, versions named."""

    applied: int = 0
    updates: int = 0
    versions: int = 0


class Event(msgspec.Struct, frozen=True, gc=False, eq=False):
    """One sealed event, as read from the log; two are equal when their headers are.

    `node` is the state the model is in after the event, named by the seq of the event that first
    led there; `parent` is, for a state-changing event, the node the model was in before.
    `state_seq` is the seq of the last state-changing event up to and including this one.
    `active` is the number of the active version after the event: the nearest named ancestor.
    `recorded_at` is UTC microseconds since the epoch and never decreases along a log. `body` holds
    the facts of the kind as they are stored, by `schema`; `events.bodies` reads them. Most readers
    never ask for it, so it is decoded when somebody does.
    """

    model: str
    seq: int
    kind: str
    schema: int
    recorded_at: int
    node: int
    parent: int | None
    state_seq: int
    state_before: bytes | None
    state_after: bytes
    counts: Counts
    payload: tuple[BlobRef, ...]
    request_id: str | None
    idempotency_key: str | None
    request_digest: bytes | None
    series: str | None
    number: int | None
    active: int | None
    actor_digest: str | None
    reason_digest: str | None
    metadata_digest: str | None
    prev: bytes | None
    header: bytes
    hash: bytes
    body_json: bytes | memoryview | msgspec.Raw
    _body: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<Event {self.seq} {self.kind} {self.name} of {self.model}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and self.header == other.header

    __hash__ = None  # type: ignore[assignment]

    @property
    def body(self) -> Mapping[str, Any]:
        """The facts of its kind; CorruptLedger when they are no JSON object."""
        if self._body is None:
            try:
                body = orjson.loads(memoryview(self.body_json))
            except ValueError as error:
                raise CorruptLedger(
                    f"event {self.seq}: its body cannot be read: {error}", seq=self.seq
                ) from None
            force_setattr(self, "_body", body)
            return body  # type: ignore[no-any-return]
        return self._body

    @property
    def name(self) -> str:
        """The event's stable public name: update id, version id, or `event_{seq}`."""
        unix = self.recorded_at // 1_000_000
        if self.kind in (UPDATED, UPDATE_REJECTED):
            return f"update_{self.number}_{unix}"
        if self.kind == VERSION_CREATED:
            return f"v{self.number}_{unix}"
        return f"event_{self.seq}"

    @property
    def timestamp(self) -> float:
        """Unix time in seconds."""
        return self.recorded_at / 1_000_000

    @property
    def payload_size(self) -> int:
        payload = self.payload
        return payload[0].size if len(payload) == 1 else sum([ref.size for ref in payload])

    @property
    def changes(self) -> tuple[TensorChange, ...]:
        """The tensors this event changed, in payload order."""
        return tuple(TensorChange.from_json(item) for item in self.body.get("tensors", ()))

    @property
    def forward_only(self) -> bool:
        """Whether its changes cannot be undone from what it stores, only redone."""
        if _FORM_OF_FACTORS not in self.header:  # nearly always: then nobody has to look closer
            return False
        return any(item.get("form") == FACTORS for item in self.body.get("tensors", ()))

    @property
    def blobs(self) -> tuple[bytes, ...]:
        """Digests of the blobs that redoing or undoing it reads; none for a small payload."""
        payload, header = self.payload, self.header
        inline = len(payload) == 1 and payload[0].size <= INLINE_BYTES
        digests = [] if inline else [ref.digest for ref in payload]
        if _FORM_OF_WHOLE in header:
            for change in self.changes:
                if change.form == WHOLE:
                    digests += [end for end in (change.before, change.after) if end is not None]
        if _IN_BLOBS in header:
            kept = (self.body.get("operands") or {}).get("tensors", ())
            digests += [bytes.fromhex(one["digest"]) for one in kept if "digest" in one]
        return tuple(digests)


def leaf_hash(header: bytes) -> bytes:
    """SHA-256 leaf of an RFC 6962 tree over the header's exact bytes."""
    return hashlib.sha256(LEAF_PREFIX + header).digest()


# The whole numbers that canonical JSON has.
_Whole = Annotated[int, msgspec.Meta(ge=-(1 << 53) + 1, le=(1 << 53) - 1)]


class HeaderPiece(msgspec.Struct, gc=False):
    """A BlobRef as a header says it: its digest in hex, and its size in bytes."""

    digest: str
    size: _Whole


class EventHeader(msgspec.Struct, gc=False, kw_only=True, omit_defaults=True):
    """A header as it is stored. Its fields are in the order of RFC 8785, so that msgspec writes it
    as canonical JSON wherever its body, which it leaves as it is, is that."""

    active: _Whole | None = None
    actor: str | None = None
    body: msgspec.Raw
    counts: Counts
    format: _Whole
    idempotency_key: str | None = None
    kind: str
    metadata: str | None = None
    model: str
    node: _Whole
    number: _Whole | None = None
    parent: _Whole | None = None
    payload: list[HeaderPiece]
    prev: str | None = None
    reason: str | None = None
    recorded_at: _Whole
    request_digest: str | None = None
    request_id: str | None = None
    schema: _Whole = FIRST_SCHEMA
    seq: _Whole
    series: str | None = None
    state_after: str
    state_before: str | None = None
    state_seq: _Whole


_read = msgspec.json.Decoder(EventHeader).decode
_sha256, _unhex = hashlib.sha256, bytes.fromhex  # looked up once for all that a page has of them

UNREADABLE = (TypeError, ValueError, AttributeError)
"""What a header that is none leads to, and a value of another type than its column's."""


def decode(header: bytes) -> Event:
    """Read a stored header; CorruptLedger when it is not one of a known format."""
    try:
        return _event(_read(header), header, leaf_hash(header))
    except UNREADABLE as error:
        raise _other_format(header) or CorruptLedger(
            f"event header cannot be read: {error!r}"
        ) from None


def decode_page(headers: Sequence[bytes]) -> list[Event]:
    """`decode` of each; one of UNREADABLE or a CorruptLedger, which does not say which it is."""
    stored = map(_read, headers)
    leaves = [_sha256(LEAF_PREFIX + header).digest() for header in headers]
    return list(map(_event, stored, headers, leaves))


def any_forward_only(headers: Sequence[bytes]) -> bool:
    """Whether any of a page of headers may be of an event that is `forward_only`."""
    return _FORM_OF_FACTORS in b"".join(headers)


def _event(stored: EventHeader, header: bytes, leaf: bytes) -> Event:
    """The event of a header as it is stored."""
    if not header.isascii():
        header.decode()  # the body, which is passed over here, has to be text as well
    if stored.format != FORMAT:
        raise _unknown(stored.format)
    before, request, prev = stored.state_before, stored.request_digest, stored.prev
    # By position: names would take as long as all the rest.
    return Event(
        stored.model,
        stored.seq,
        stored.kind,
        stored.schema,
        stored.recorded_at,
        stored.node,
        stored.parent,
        stored.state_seq,
        None if before is None else _unhex(before),
        _unhex(stored.state_after),
        stored.counts,
        tuple([BlobRef(_unhex(one.digest), one.size) for one in stored.payload]),
        stored.request_id,
        stored.idempotency_key,
        None if request is None else _unhex(request),
        stored.series,
        stored.number,
        stored.active,
        stored.actor,
        stored.reason,
        stored.metadata,
        None if prev is None else _unhex(prev),
        header,
        leaf,
        stored.body,
    )


def _other_format(header: bytes) -> CorruptLedger | None:
    """What to say of a header that is not of this format, where it says so."""
    try:
        number = orjson.loads(header)["format"]
    except (ValueError, KeyError, TypeError):
        return None
    return None if number == FORMAT else _unknown(number)


def _unknown(number: Any) -> CorruptLedger:
    return CorruptLedger(f"event format {number} is not known, expected {FORMAT}")
