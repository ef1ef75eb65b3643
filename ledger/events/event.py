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
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.events.changes import FACTORS, WHOLE, TensorChange

FORMAT = 1

INLINE_BYTES = 256 * 1024
"""A payload up to this size, in one piece, is stored in the event's own row."""

LEAF_PREFIX = b"\x00"  # RFC 6962: keeps leaves and inner nodes of the hash tree apart

# Permanent names: they are in stored headers, so they are never renamed or reused.
REGISTERED = "registered"
UPDATED = "updated"
UPDATE_REJECTED = "update_rejected"
ROLLED_BACK = "rolled_back"
VERSION_CREATED = "version_created"
VERSION_RETIRED = "version_retired"
VERSION_PINNED = "version_pinned"
VERSION_UNPINNED = "version_unpinned"
ADAPTER_LOADED = "adapter_loaded"
ADAPTER_UNLOADED = "adapter_unloaded"
PRUNED = "pruned"

KINDS = (
    REGISTERED,
    UPDATED,
    UPDATE_REJECTED,
    ROLLED_BACK,
    VERSION_CREATED,
    VERSION_RETIRED,
    VERSION_PINNED,
    VERSION_UNPINNED,
    ADAPTER_LOADED,
    ADAPTER_UNLOADED,
    PRUNED,
)
STATE_CHANGING = frozenset({REGISTERED, UPDATED, ROLLED_BACK, ADAPTER_LOADED, ADAPTER_UNLOADED})


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A content-addressed piece of payload: its digest (32 bytes) and its size in bytes."""

    digest: bytes
    size: int


# Series that number events, each from the index (model, series, number) in the store.
UPDATES = "updates"  # updates tried, from 1: the n of update_{n}
VERSIONS = "versions"  # versions named, from 0: the n of v{n}
RETIRED = "retired"  # the n of the version that a version_retired event retires
PINS = "pins"  # versions pinned or unpinned, from 0
PRUNINGS = "prunings"  # runs of gc that dropped something, from 0


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


KEEP_ACTIVE = -1
THIS_VERSION = -2


@dataclass(frozen=True, slots=True)
class Draft:
    """An event as its writer proposes it, before the log gives it a place.

    A draft of a state-changing kind names the digest it leads to; the node it leads to is the
    event itself, or `target_node` for a rollback. `series` numbers it: the next number of that
    series, or `number` where the writer gives one. `active` is the number of the version that is
    active afterwards: KEEP_ACTIVE leaves it as it is, THIS_VERSION is the one being named.
    """

    kind: str
    body: Mapping[str, Any]
    state_after: bytes
    target_node: int | None = None
    series: str | None = None
    number: int | None = None
    active: int | None = KEEP_ACTIVE
    payload: tuple[BlobRef, ...] = ()
    annotation: Annotation = field(default_factory=Annotation)
    request_id: str | None = None
    idempotency_key: str | None = None
    request_digest: bytes | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One sealed event, as read from the log.

    `node` is the state the model is in after the event, named by the seq of the event that first
    led there; `parent` is, for a state-changing event, the node the model was in before.
    `state_seq` is the seq of the last state-changing event up to and including this one.
    `active` is the number of the active version after the event: the nearest named ancestor.
    `recorded_at` is UTC microseconds since the epoch and never decreases along a log.
    """

    model: str
    seq: int
    kind: str
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
        for change in self.changes:
            if change.form == WHOLE:
                found += [end for end in (change.before, change.after) if end is not None]
        return tuple(found)


def leaf_hash(header: bytes) -> bytes:
    """SHA-256 leaf of an RFC 6962 tree over the header's exact bytes."""
    return hashlib.sha256(LEAF_PREFIX + header).digest()


def seal(draft: Draft, model: str, last: Event | None, now: int) -> Event:
    """Give a draft its place after `last` (None for the first event of a model).

    `now` is UTC microseconds; a clock that stepped back is held at the last event's time.
    """
    seq = 0 if last is None else last.seq + 1
    changes_state = draft.kind in STATE_CHANGING
    counts = last.counts if last else Counts()
    number = draft.number
    if draft.series == UPDATES:
        number = counts.updates + 1
    elif draft.series == VERSIONS:
        number = counts.versions
    counts = Counts(
        updates=counts.updates + (draft.series == UPDATES),
        applied=counts.applied + (draft.kind == UPDATED),
        versions=counts.versions + (draft.series == VERSIONS),
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
    fields: dict[str, Any] = {
        "format": FORMAT,
        "model": model,
        "seq": seq,
        "kind": draft.kind,
        "recorded_at": max(now, last.recorded_at) if last else now,
        "node": node,
        "parent": last.node if last and changes_state else None,
        "state_seq": seq if last is None or changes_state else last.state_seq,
        "state_before": last.state_after.hex() if last else None,
        "state_after": draft.state_after.hex(),
        "counts": {
            "updates": counts.updates,
            "applied": counts.applied,
            "versions": counts.versions,
        },
        "series": draft.series,
        "number": number,
        "active": active,
        "body": draft.body,
        "payload": [{"digest": ref.digest.hex(), "size": ref.size} for ref in draft.payload],
        "actor": draft.annotation.digest("actor"),
        "reason": draft.annotation.digest("reason"),
        "metadata": draft.annotation.digest("metadata"),
        "request_id": draft.request_id,
        "idempotency_key": draft.idempotency_key,
        "request_digest": draft.request_digest.hex() if draft.request_digest else None,
        "prev": last.hash.hex() if last else None,
    }
    header = canonical({key: value for key, value in fields.items() if value is not None})
    return decode(header)


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
