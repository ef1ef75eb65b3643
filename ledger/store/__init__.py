"""Where events live.

`EventStore` is the port: an append-only log per model plus the payload bytes it refers to.
`ledger.store.sql_store` implements it for SQLite and PostgreSQL; the suite in
`tests/conformance/test_store.py` is what an implementation has to pass.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from weightledger.ledger.blobs import Buffer
from weightledger.ledger.events.event import Annotation, Event


@dataclass(frozen=True, slots=True)
class Append:
    """One event and everything that becomes durable with it, in one transaction.

    `parameters` are full state names: of a first event all of the model's, of an `updated` one
    those it counts as an update of; other kinds are an update of none. `payload` is the inline
    payload (at most `events.INLINE_BYTES`), else None; `blobs` are larger pieces by digest.
    `dropped_snapshots` are nodes whose anchors are forgotten with this event.
    """

    event: Event
    annotation: Annotation
    parameters: Sequence[str] = ()
    payload: bytes | None = None
    blobs: Mapping[bytes, Buffer] = field(default_factory=dict)
    snapshot: "Snapshot | None" = None
    dropped_snapshots: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An anchor: the whole state at a node, as a manifest blob naming tensor blobs.

    `size` is what restoring it reads, in bytes.
    """

    node: int
    manifest: bytes
    size: int


class Step(NamedTuple):
    """A state-changing event as the path finder sees it; `size` is its payload in bytes.

    `forward_only` is 1 for an event that can be redone but not undone, else 0.
    """

    seq: int
    kind: str
    node: int
    parent: int | None
    size: int
    forward_only: int = 0


class Listed(NamedTuple):
    """A version that is not retired: its number, the seq of its event and the node it names."""

    number: int
    seq: int
    node: int
    pinned: bool


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events to list; every field narrows, None does not.

    `parameter` is a case-sensitive glob over bare parameter names and selects the updates that
    touched one; `since` and `until` are UTC microseconds; all bounds are inclusive.
    """

    kinds: Sequence[str] = ()
    actors: Sequence[str] = ()
    parameter: str | None = None
    since: int | None = None
    until: int | None = None
    min_seq: int | None = None
    max_seq: int | None = None


Note = tuple[int, str | None, str | None, str | None, bytes]
"""An event's key and the fields of its Annotation, which is made from them where it is needed."""


class EventStore(Protocol):
    """An append-only log per model; every method may raise StorageError."""

    @property
    def url(self) -> str:
        """Where another process opens the same store; may hold a password."""

    def close(self) -> None:
        """Give back every connection; further use is an error."""

    def weaknesses(self) -> list[str]:
        """What no longer keeps the log append-only, in words; empty when all is well."""

    def models(self) -> Mapping[str, int]:
        """Names of the registered models and their ids, in order of registration."""

    def append(self, *items: Append) -> None:
        """Make events durable in one transaction, all of them or nothing.

        Raises SeqTaken when the seq exists (or the predecessor does not), KeyTaken when the
        idempotency key exists, Conflict when its series has its number already. The first event
        (seq 0) registers the model by its name; SeqTaken when another was first.
        """

    def head(self, model_id: int) -> Event:
        """The last event of a model; NotFound for an id that is none."""

    def event(self, model_id: int, seq: int) -> Event | None:
        """One event; CorruptLedger when the row does not match its header."""

    def annotation(self, model_id: int, seq: int) -> Annotation | None:
        """The free text beside an event."""

    def annotations(self, model_id: int, seqs: Iterable[int]) -> Mapping[int, Annotation]:
        """The free text beside each of some events, by seq; those without are left out."""

    def by_number(self, model_id: int, series: str, number: int) -> Event | None:
        """The event that is update n ("updates") or version n ("versions")."""

    def last_number(self, model_id: int, series: str) -> int | None:
        """The highest number of a series; None before the first."""

    def listed_versions(self, model_id: int) -> list[Listed]:
        """The versions that are not retired, by number."""

    def listed_version(self, model_id: int, number: int) -> Listed | None:
        """The version with this number, if it is not retired."""

    def listed_before(self, model_id: int, node: int) -> Listed | None:
        """Of the versions that name this node or the nearest smaller one the newest."""

    def by_key(self, model_id: int, idempotency_key: str) -> Event | None:
        """The event that used this idempotency key."""

    def by_state(self, model_id: int, digest: bytes) -> Event | None:
        """Some state-changing event that led to this state digest."""

    def at_time(self, model_id: int, recorded_at: int) -> Event | None:
        """The last event recorded at or before a time (UTC microseconds)."""

    def state_change_before(self, model_id: int, seq: int, back: int) -> Event | None:
        """The state-changing event `back` places before the one at or before `seq`."""

    def scan(self, model_id: int, start: int = 0, stop: int | None = None) -> Iterator[Event]:
        """Events with start <= seq < stop in order; CorruptLedger for a gap or a bad row."""

    def raw(
        self, model_id: int, start: int, stop: int
    ) -> Iterator[tuple[list[Any], Mapping[int, Note]]]:
        """Rows of `ledger.store.rows.COLUMNS` with start <= seq < stop in order, unchecked.

        They come in pages, each with the annotations beside it by their events' keys.
        """

    def select(
        self, model_id: int, where: EventFilter, *, limit: int, newest_first: bool = True
    ) -> list[Event]:
        """Events that pass the filter, at most `limit`."""

    def steps(self, model_id: int, start: int, stop: int) -> list[Step]:
        """State-changing events with start <= seq < stop, in order."""

    def update_counts(self, model_id: int) -> Mapping[str, int]:
        """How many applied updates touched each full state name (those with at least one)."""

    def payload(self, event: Event) -> bytes:
        """The event's payload, checked against its digests; CorruptLedger names the seq."""

    def payloads(self, events: Sequence[Event]) -> list[bytes]:
        """The payloads of events of one model, each as of `payload`; the inline ones are read
        together."""

    def snapshots(self, model_id: int) -> list[Snapshot]:
        """The anchors of a model, by node."""

    def snapshots_near(self, model_id: int, node: int, most: int) -> list[Snapshot]:
        """Of the anchors at or before a node the last `most`, and the first `most` after it."""

    def add_snapshot(self, model_id: int, snapshot: Snapshot) -> None:
        """Remember an anchor whose blobs are already stored; adding it twice is fine."""
