"""Events: what the log is made of.

An event is one immutable fact about one model. Its header is canonical JSON (RFC 8785); the exact
bytes are stored and hashed, so a third party can check them without this package. Headers hold
digests and facts, never tensors; free text that may have to be forgotten one day (actor, reason,
metadata) enters a header only as a salted SHA-256 and lives in a side table.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events.changes import FACTORS, WHOLE, TensorChange
from weightledger.ledger.events.kinds import (
    FIRST_SCHEMA,
    FORMAT,
    INLINE_BYTES,
    LEAF_PREFIX,
    UPDATE_REJECTED,
    UPDATED,
    VERSION_CREATED,
)


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A content-addressed piece of payload: its digest (32 bytes) and its size in bytes."""

    digest: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Running totals after an event: updates tried, updates applied, versions named."""

    updates: int = 0
    applied: int = 0
    versions: int = 0


@dataclass(frozen=True, slots=True)
class Annotation:
    """Free text beside the event; a header holds only `digest()` of each value."""

    actor: str | None = None
    reason: str | None = None
    metadata: str | None = None  # canonical JSON text
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def __bool__(self) -> bool:
        return any(value is not None for value in (self.actor, self.reason, self.metadata))

    def digest(self, name: str) -> str | None:
        """Hex SHA-256 of salt, field name, NUL and the value's UTF-8; None without a value."""
        value: str | None = getattr(self, name)
        return None if value is None else annotation_digest(self.salt, name, value)


def annotation_digest(salt: bytes, name: str, value: str) -> str:
    """What a header holds of an annotation's field: hex SHA-256 of salt, name, NUL and value."""
    return hashlib.sha256(salt + f"{name}\0{value}".encode()).hexdigest()


@dataclass(frozen=True, slots=True, repr=False)
class Event:
    """One sealed event, as read from the log.

    `node` is the state the model is in after the event, named by the seq of the event that first
    led there; `parent` is, for a state-changing event, the node the model was in before.
    `state_seq` is the seq of the last state-changing event up to and including this one.
    `active` is the number of the active version after the event: the nearest named ancestor.
    `recorded_at` is UTC microseconds since the epoch and never decreases along a log. `body` holds
    the facts of the kind as they are stored, by `schema`; `events.bodies` reads them.
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
    body: Mapping[str, Any]
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

    def __repr__(self) -> str:
        return f"<Event {self.seq} {self.kind} {self.name} of {self.model}>"

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
        return sum(ref.size for ref in self.payload)

    @property
    def changes(self) -> tuple[TensorChange, ...]:
        """The tensors this event changed, in payload order."""
        return tuple(TensorChange.from_json(item) for item in self.body.get("tensors", ()))

    @property
    def forward_only(self) -> bool:
        """Whether its changes cannot be undone from what it stores, only redone."""
        return any(item.get("form") == FACTORS for item in self.body.get("tensors", ()))

    @property
    def blobs(self) -> tuple[bytes, ...]:
        """Digests of the blobs that redoing or undoing it reads; none for a small payload."""
        inline = len(self.payload) == 1 and self.payload[0].size <= INLINE_BYTES
        found = [] if inline else [ref.digest for ref in self.payload]
        if any(item.get("form") == WHOLE for item in self.body.get("tensors", ())):
            for change in self.changes:
                if change.form == WHOLE:
                    found += [end for end in (change.before, change.after) if end is not None]
        kept = (self.body.get("operands") or {}).get("tensors", ())
        found += [bytes.fromhex(one["digest"]) for one in kept if "digest" in one]
        return tuple(found)


def leaf_hash(header: bytes) -> bytes:
    """SHA-256 leaf of an RFC 6962 tree over the header's exact bytes."""
    return hashlib.sha256(LEAF_PREFIX + header).digest()


def decode(header: bytes) -> Event:
    """Read a stored header; CorruptLedger when it is not one of a known format."""
    try:
        fields = orjson.loads(header)
        if fields["format"] != FORMAT:
            raise CorruptLedger(f"event format {fields['format']} is not known, expected {FORMAT}")
        return Event(
            model=fields["model"],
            seq=fields["seq"],
            kind=fields["kind"],
            schema=fields.get("schema", FIRST_SCHEMA),
            recorded_at=fields["recorded_at"],
            node=fields["node"],
            parent=fields.get("parent"),
            state_seq=fields["state_seq"],
            state_before=_digest(fields.get("state_before")),
            state_after=bytes.fromhex(fields["state_after"]),
            counts=Counts(**fields["counts"]),
            body=fields["body"],
            payload=_payload(fields["payload"]),
            request_id=fields.get("request_id"),
            idempotency_key=fields.get("idempotency_key"),
            request_digest=_digest(fields.get("request_digest")),
            series=fields.get("series"),
            number=fields.get("number"),
            active=fields.get("active"),
            actor_digest=fields.get("actor"),
            reason_digest=fields.get("reason"),
            metadata_digest=fields.get("metadata"),
            prev=_digest(fields.get("prev")),
            header=bytes(header),
            hash=leaf_hash(header),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptLedger(f"event header cannot be read: {error!r}") from None


def _digest(value: str | None) -> bytes | None:
    return None if value is None else bytes.fromhex(value)


def _payload(items: Sequence[Mapping[str, Any]]) -> tuple[BlobRef, ...]:
    return tuple(BlobRef(bytes.fromhex(item["digest"]), item["size"]) for item in items)
