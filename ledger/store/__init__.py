"""Where events live.

`LedgerStore` is the port to a whole ledger: its models and its blobs. `EventStore` is the port to
one model's events, in layers that ask for little each: a log that only grows, ways to find events,
the list of versions, anchors, and what an audit reads. `ledger.store.sql_store` implements both
for SQLite and PostgreSQL; the suite in `tests/conformance/event_stores.py` is what an
implementation has to pass. Every method may raise StorageError.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol

from weightledger.ledger.access.records import ApiKeys
from weightledger.ledger.blobs import BlobStore
from weightledger.ledger.blobs.tenants import Tenancy
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import Annotation, Event
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.sql.backend import Slots
from weightledger.ledger.sql.turns import Meanwhile, Turn
from weightledger.ledger.sql.wakeups import Ending, Wake
from weightledger.ledger.store.attached import Append, Snapshot
from weightledger.ledger.store.metric_rows import MetricStore
from weightledger.ledger.store.payloads import ByteSpan, Portion
from weightledger.ledger.store.proposal_rows import ProposalStore
from weightledger.ledger.store.replica_rows import ReplicaStore


class StateChange(NamedTuple):
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
    touched one; `since` and `until` are UTC microseconds; all bounds are inclusive. `text` are
    words that the reason and the actor have to have, all of them, upper and lower case the same;
    `min_norm` is the least norm of an update; `metadata` maps keys to values, a string standing for
    itself and any other value for its JSON.
    """

    kinds: Sequence[str] = ()
    actors: Sequence[str] = ()
    parameter: str | None = None
    since: int | None = None
    until: int | None = None
    min_seq: int | None = None
    max_seq: int | None = None
    text: str | None = None
    min_norm: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("kinds", "actors"):
            require_texts(name, getattr(self, name))
        for name in ("since", "until", "min_seq", "max_seq"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                unit = "UTC microseconds" if name in ("since", "until") else "a seq"
                raise InvalidRequest(
                    f"{name} must be a whole number ({unit}), got {value!r:.200}", param=name
                )
        for name in ("parameter", "text"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InvalidRequest(f"{name} must be a string, got {value!r:.200}", param=name)
        norm = self.min_norm
        if norm is not None and (
            isinstance(norm, bool) or not isinstance(norm, Real) or not norm >= 0
        ):
            raise InvalidRequest(f"min_norm must be 0 or more, got {norm!r:.200}", param="min_norm")
        if self.text is not None and not re.search(r"\w", self.text):
            raise InvalidRequest(
                f"text must have a word to look for, got {self.text!r}", param="text"
            )
        object.__setattr__(self, "metadata", _as_texts(self.metadata))

    @property
    def blockwise(self) -> bool:
        """Whether it asks for what only the blocks of the search know."""
        return self.text is not None or self.min_norm is not None or bool(self.metadata)


def require_texts(name: str, value: object) -> None:
    """Refuse what is no list of strings: a string would be taken by its letters."""
    if isinstance(value, str) or not (
        isinstance(value, Sequence | Set) and all(isinstance(one, str) for one in value)
    ):
        raise InvalidRequest(f"{name} must be a list of strings, got {value!r:.200}", param=name)


def _as_texts(metadata: object) -> dict[str, str]:
    """Values as they are compared: see `EventFilter`."""
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise InvalidRequest(
            f"metadata must map keys to values, got {metadata!r:.200}", param="metadata"
        )
    for key, value in metadata.items():
        if not (value is None or isinstance(value, str | int | float)):
            raise InvalidRequest(
                f"metadata {key!r} must be a string, a number, true, false or null,"
                f" got {value!r:.200}",
                param="metadata",
            )
    return {
        key: value if isinstance(value, str) else canonical(value, param="metadata").decode()
        for key, value in metadata.items()
    }


class DayCount(NamedTuple):
    """How many events there were on a day (since 1970, UTC) of one kind by one actor."""

    day: int
    kind: str
    actor: str | None
    events: int


TILE_LEVELS = 8
"""A store keeps the hash tree's nodes of every eighth level, as they become complete."""
TILE = 1 << TILE_LEVELS

RawEvent = tuple[Any, ...]
"""The fields of `ledger.store.facts.Facts` and, behind them, of the Annotation beside the event, as
they are stored; None for each where there is none."""


class AppendLog(Protocol):
    """A log that only grows: gapless, in the order in which its events were committed."""

    @property
    def model(self) -> str:
        """The model's name."""

    def append(self, *items: Append) -> None:
        """Make events durable in one transaction, all of them or nothing.

        Raises SeqTaken when the seq exists (or the predecessor does not), KeyTaken when the
        idempotency key exists, Conflict when its series has its number already, InvalidRequest
        for another model's event.
        """

    def turn(
        self, meanwhile: Meanwhile | None = None, after: int | None = None
    ) -> AbstractContextManager[Turn]:
        """Around catching up, working out an event and appending it: one writer at a time.

        Those of other processes wait, in order. A courtesy to them: the log is right without.
        `meanwhile` may be called where this one has to wait, shortly before its turn. The events
        after the seq `after` are read with the turn where the database gives both at once.
        """

    def head(self) -> Event:
        """The last event."""

    def last_seq(self) -> int:
        """The seq of the last event, at the cost of one index entry."""

    def wait(
        self, after: int, timeout_s: float, wake: Wake = "auto", ended: Ending | None = None
    ) -> int:
        """Wait, at most so long and until it has ended, for an event behind a seq; gives the last
        seq.

        `wake` says how: "listen" to what the database tells, "poll" (look again and again, which
        works through any pooler), or "auto", the first where it is found to work.
        """

    def event(self, seq: int) -> Event | None:
        """One event; CorruptLedger when what is stored beside its header is not what it says."""

    def events(self, seqs: Iterable[int]) -> Mapping[int, Event]:
        """Those of these events that there are, by seq, read together; checked as by `event`."""

    def scan(self, start: int = 0, stop: int | None = None) -> Iterator[Event]:
        """Events with start <= seq < stop in order; CorruptLedger for a gap or a bad event."""

    def news(
        self, seq: int, most: int, turn: Turn | None = None
    ) -> list[tuple[Event, bytes | None]]:
        """The events after `seq` in order, at most so many, each with its payload where that is
        inline; checked as by `scan` and `payload`. What was read with the turn is not asked for
        again, so it may be what there was when that began."""

    def payload(self, event: Event) -> bytes:
        """The event's payload, checked against its digests; CorruptLedger names the seq.

        What several ranks wrote is given as one process would have written it.
        """

    def payloads(self, events: Sequence[Event]) -> list[bytes]:
        """The payloads of events, each as of `payload`; the inline ones are read together."""

    def stored_payload(self, event: Event) -> bytes:
        """The payload as it is stored, which of an event that several ranks wrote is what each
        wrote and their index (`events.bodies.shards`); checked as by `payload`."""

    def unchecked(self, events: Sequence[Event]) -> list[Portion]:
        """The same payloads, not checked against their digests: who uses them checks what comes of
        them. CorruptLedger names the seq of one that is missing or has another length."""

    def portions(self, asked: Sequence[tuple[Event, Sequence[ByteSpan]]]) -> list[Portion]:
        """Some ranges of the payload of each event, as `ledger.store.payloads.joined` gives them.

        They are as they are stored; a payload that is small, or asked for whole, is read whole and
        checked. CorruptLedger names the seq of one that is missing or too short.
        """


class EventLookup(Protocol):
    """Events found by what is known of them, at a cost that does not grow with the log."""

    def annotation(self, seq: int) -> Annotation | None:
        """The free text beside an event."""

    def annotations(self, seqs: Iterable[int]) -> Mapping[int, Annotation]:
        """The free text beside each of some events, by seq; those without are left out."""

    def by_number(self, series: str, number: int) -> Event | None:
        """The event that is update n ("updates") or version n ("versions")."""

    def last_number(self, series: str) -> int | None:
        """The highest number of a series; None before the first."""

    def by_key(self, idempotency_key: str) -> Event | None:
        """The event that used this idempotency key."""

    def by_state(self, digest: bytes) -> Event | None:
        """Some state-changing event that led to this state digest."""

    def states_between(self, first: bytes, last: bytes, limit: int) -> list[Event]:
        """Of each state whose digest lies within bounds, some event that led to it; at most
        `limit`, in the order of their digests."""

    def at_time(self, recorded_at: int) -> Event | None:
        """The last event recorded at or before a time (UTC microseconds)."""

    def recorded_before(self, moments: Sequence[int]) -> list[int]:
        """How many events were recorded before each of these times (UTC microseconds)."""

    def state_change_before(self, seq: int, back: int) -> Event | None:
        """The state-changing event `back` places before the one at or before `seq`."""

    def state_changes(self, start: int, stop: int) -> list[StateChange]:
        """State-changing events with start <= seq < stop, in order."""

    def select(self, where: EventFilter, *, limit: int, newest_first: bool = True) -> list[Event]:
        """Events that pass the filter, at most `limit`."""

    def activity(self, where: EventFilter) -> list[DayCount]:
        """How many events pass a filter of kinds, actors and times, by day, kind and actor."""

    def index(self) -> None:
        """Write down what complete stretches of the log can be searched by, a few at a time."""

    def update_counts(self) -> Mapping[str, int]:
        """How many applied updates touched each full state name (those with at least one)."""


class VersionListing(Protocol):
    """The versions that are not retired, kept up to date by the events that say so."""

    def listed_versions(self) -> list[Listed]:
        """The versions that are not retired, by number."""

    def last_listed(self, limit: int, below: int | None = None) -> list[Listed]:
        """Of the versions that are not retired the last `limit` (below a number), newest first."""

    def listed_at(self, nodes: Sequence[int]) -> list[Listed]:
        """The versions that name one of these nodes and are not retired, by number."""

    def listed_version(self, number: int) -> Listed | None:
        """The version with this number, if it is not retired."""

    def listed_before(self, node: int) -> Listed | None:
        """Of the versions that name this node or the nearest smaller one the newest."""


class Anchors(Protocol):
    """Snapshots that a rebuild can start from."""

    def snapshots(self) -> list[Snapshot]:
        """Every anchor, by node."""

    def snapshots_near(self, node: int, most: int) -> list[Snapshot]:
        """Of the anchors at or before a node the last `most`, and the first `most` after it."""

    def add_snapshot(self, snapshot: Snapshot, blobs: Iterable[bytes] = ()) -> set[bytes]:
        """Remember an anchor, if all of these blobs are stored; adding it twice is fine.

        Gives those that are not: then nothing is remembered. In one piece, so that no collector
        comes between.
        """


class RawLog(Protocol):
    """What an audit reads: events as they are stored, unchecked."""

    def raw(self, start: int, stop: int) -> Iterator[list[RawEvent]]:
        """Events with start <= seq < stop in order, in pages; what is stored under another model's
        name is left out."""

    def tree_hashes(self, level: int, start: int, stop: int) -> list[bytes]:
        """The roots of the perfect subtrees of 2^level events with start <= number < stop.

        `level` is a multiple of TILE_LEVELS; those of level 0 are the events' own hashes. What is
        not complete yet is left out.
        """


Repairs = Mapping[str, int]
"""How many rows of each derived table differed."""


class Upkeep(Protocol):
    """What is kept beside the log so that it can be searched, compared with it and put right.

    `weights` are the full names of the tensors that the model was registered with; None where that
    is not known any more.
    """

    def discrepancies(self, weights: Collection[str] | None, *, tree: bool = True) -> list[str]:
        """Where it is not what the log says, in words; empty when all is well.

        Without `tree` the hash tree is left out, which `audit.tree` checks.
        """

    def repair(
        self, weights: Collection[str] | None, record: Callable[[Event, Repairs], Append]
    ) -> Event:
        """Derive it from the log anew and append, in the same transaction, what `record` makes of
        the head and of what differed. CorruptLedger where that cannot be put right."""


class EventStore(AppendLog, EventLookup, VersionListing, Anchors, Upkeep, RawLog, Protocol):
    """One model's events."""

    @property
    def home(self) -> "LedgerStore":
        """The store of the ledger that the model belongs to."""

    @property
    def metrics(self) -> MetricStore:
        """What was measured of the model, beside its log."""

    @property
    def replicas(self) -> ReplicaStore:
        """Who follows the log, and what each of them showed."""

    @property
    def proposals(self) -> ProposalStore:
        """Events that are not appended yet, for replicas to prepare."""

    def slots(self, count: int, name: str) -> Slots:
        """So many slots, which replicas hold while they change, for the one called `name`.

        InvalidRequest where the database has none.
        """


class LedgerStore(Protocol):
    """Every model's events, and the blobs they refer to."""

    @property
    def url(self) -> str:
        """Where another process opens the same store; may hold a password."""

    @property
    def blobs(self) -> BlobStore:
        """Payloads that are not inline, and snapshots."""

    @property
    def tenancy(self) -> Tenancy:
        """Who else keeps blobs there."""

    @property
    def keys(self) -> ApiKeys:
        """Who may ask a server for it."""

    def models(self) -> list[str]:
        """Names of the registered models, in order of registration."""

    def model(self, name: str) -> EventStore:
        """A registered model's events; NotFound names the models there are."""

    def register(self, first: Append) -> EventStore:
        """Make a model's first event (seq 0) durable, as `AppendLog.append` does.

        SeqTaken when another writer was first; InvalidRequest for an event that is no first one.
        """

    def version(self) -> str:
        """The name and version of what keeps the events, such as "SQLite 3.53.4"."""

    def damage(self) -> list[str]:
        """What the database's own checks find, and what no log accounts for, in words."""

    def rebuild_indexes(self) -> None:
        """Make what events are found by from the events anew."""

    def give_way(self) -> bool:
        """Let go of room that is kept for collecting on a full disk; False when none is left."""

    def take_back(self) -> None:
        """Keep that room again, as far as there is any."""

    def weaknesses(self) -> list[str]:
        """What no longer keeps the log append-only, in words; empty when all is well."""

    def close(self) -> None:
        """Give back every connection; further use is an error."""
