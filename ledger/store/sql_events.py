"""One model's events over SQL, for SQLite and PostgreSQL; the port is `ledger.store.EventStore`.

What each layer of the port does is in a file of its own, as functions of `ModelRows`; here they
are one object.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from weightledger.ledger.events import REDACTED, Annotation, Event
from weightledger.ledger.sql.backend import Slots
from weightledger.ledger.sql.database import Database
from weightledger.ledger.sql.turns import Meanwhile, Turn
from weightledger.ledger.sql.wakeups import Ending, Wake
from weightledger.ledger.store import (
    DayCount,
    EventFilter,
    LedgerStore,
    Listed,
    RawEvent,
    Repairs,
    StateChange,
    listed_rows,
    log_reading,
    lookup,
    news_rows,
    tree_rows,
    upkeep,
    waiting,
)
from weightledger.ledger.store.append import Appender
from weightledger.ledger.store.attached import Append, Snapshot
from weightledger.ledger.store.filtering import Filtering
from weightledger.ledger.store.metric_rows import SqlMetrics
from weightledger.ledger.store.model_rows import ModelRows
from weightledger.ledger.store.payloads import ByteSpan, Portion
from weightledger.ledger.store.proposal_rows import SqlProposals
from weightledger.ledger.store.replica_rows import SqlReplicas


class SqlEvents:
    """One registered model's events, annotations, versions and anchors in a database.

    Blobs in the same database are stored in an event's transaction; others before it, so that an
    event never refers to what is not durable. Safe to share between threads. Each method does what
    the port says of it.
    """

    def __init__(self, home: LedgerStore, database: Database, appender: Appender) -> None:
        self.home = home
        self.model = appender.model
        self._database = database
        self._of = of = ModelRows(database, appender.model_id, appender.model)
        self._appender = appender
        self._turnstile = database.turnstile(of.model_id, of.model)
        self._filtering = Filtering(of, self.turn)
        self.metrics = SqlMetrics(database, of.model_id)
        self.replicas = SqlReplicas(database, of.model_id)
        self.proposals = SqlProposals(database, of.model_id)

    # AppendLog

    def append(self, *items: Append) -> None:
        self._appender.append(items)
        for event, _, _ in items:
            if event.kind == REDACTED:
                self._filtering.forget()

    def turn(
        self, meanwhile: Meanwhile | None = None, after: int | None = None
    ) -> AbstractContextManager[Turn]:
        if after is None or not self._turnstile.answers:
            return self._turnstile.turn(meanwhile)
        return self._turnstile.turn(meanwhile, news_rows.question(self._of, after))

    def head(self) -> Event:
        return lookup.head(self._of)

    def last_seq(self) -> int:
        return waiting.last_seq(self._of)

    def wait(
        self, after: int, timeout_s: float, wake: Wake = "auto", ended: Ending | None = None
    ) -> int:
        return waiting.wait(self._of, after, timeout_s, wake, ended)

    def slots(self, count: int, name: str) -> Slots:
        return self._database.slots(self._of.model_id, count, name)

    def event(self, seq: int) -> Event | None:
        return lookup.by_seq(self._of, seq)

    def events(self, seqs: Iterable[int]) -> Mapping[int, Event]:
        return lookup.by_seqs(self._of, seqs)

    def scan(self, start: int = 0, stop: int | None = None) -> Iterator[Event]:
        return log_reading.scan(self._of, start, stop)

    def news(
        self, seq: int, most: int, turn: Turn | None = None
    ) -> list[tuple[Event, bytes | None]]:
        return news_rows.news(self._of, seq, most, None if turn is None else turn.news)

    def payload(self, event: Event) -> bytes:
        return self.payloads([event])[0]

    def payloads(self, events: Sequence[Event]) -> list[bytes]:
        return log_reading.payloads_of(self._of, events, self.home.blobs)

    def stored_payload(self, event: Event) -> bytes:
        (payload,) = log_reading.stored_payloads_of(self._of, [event], self.home.blobs)
        return payload

    def unchecked(self, events: Sequence[Event]) -> list[Portion]:
        return log_reading.unchecked_of(self._of, events, self.home.blobs)

    def portions(self, asked: Sequence[tuple[Event, Sequence[ByteSpan]]]) -> list[Portion]:
        return log_reading.portions_of(self._of, asked, self.home.blobs)

    # EventLookup

    def annotation(self, seq: int) -> Annotation | None:
        return self.annotations([seq]).get(seq)

    def annotations(self, seqs: Iterable[int]) -> Mapping[int, Annotation]:
        return lookup.annotations(self._of, seqs)

    def by_number(self, series: str, number: int) -> Event | None:
        return lookup.by_number(self._of, series, number)

    def last_number(self, series: str) -> int | None:
        return lookup.last_number(self._of, series)

    def by_key(self, idempotency_key: str) -> Event | None:
        return lookup.by_key(self._of, idempotency_key)

    def by_state(self, digest: bytes) -> Event | None:
        return lookup.by_state(self._of, digest)

    def states_between(self, first: bytes, last: bytes, limit: int) -> list[Event]:
        return lookup.states_between(self._of, first, last, limit)

    def at_time(self, recorded_at: int) -> Event | None:
        return lookup.at_time(self._of, recorded_at)

    def recorded_before(self, moments: Sequence[int]) -> list[int]:
        return lookup.recorded_before(self._of, moments)

    def state_change_before(self, seq: int, back: int) -> Event | None:
        return lookup.state_change_before(self._of, seq, back)

    def state_changes(self, start: int, stop: int) -> list[StateChange]:
        return lookup.state_changes(self._of, start, stop)

    def select(self, where: EventFilter, *, limit: int, newest_first: bool = True) -> list[Event]:
        return self._filtering.select(where, limit, newest_first)

    def activity(self, where: EventFilter) -> list[DayCount]:
        return self._filtering.activity(where)

    def index(self) -> None:
        self._filtering.index()

    def update_counts(self) -> Mapping[str, int]:
        return lookup.update_counts(self._of)

    # VersionList and Anchors

    def listed_versions(self) -> list[Listed]:
        return listed_rows.versions(self._of)

    def last_listed(self, limit: int, below: int | None = None) -> list[Listed]:
        return listed_rows.last_versions(self._of, limit, below)

    def listed_at(self, nodes: Sequence[int]) -> list[Listed]:
        return listed_rows.versions_at(self._of, nodes)

    def listed_version(self, number: int) -> Listed | None:
        return listed_rows.version(self._of, number)

    def listed_before(self, node: int) -> Listed | None:
        return listed_rows.version_before(self._of, node)

    def snapshots(self) -> list[Snapshot]:
        return listed_rows.snapshots(self._of)

    def snapshots_near(self, node: int, most: int) -> list[Snapshot]:
        return listed_rows.snapshots_near(self._of, node, most)

    def add_snapshot(self, snapshot: Snapshot, blobs: Iterable[bytes] = ()) -> set[bytes]:
        return self._appender.add_snapshot(snapshot, blobs)

    # RawLog and Upkeep

    def raw(self, start: int, stop: int) -> Iterator[list[RawEvent]]:
        return log_reading.raw(self._of, start, stop)

    def tree_hashes(self, level: int, start: int, stop: int) -> list[bytes]:
        with self._database.read() as execute:
            return tree_rows.hashes(execute, self._of.model_id, level, start, stop)

    def discrepancies(self, weights: Collection[str] | None, *, tree: bool = True) -> list[str]:
        return upkeep.discrepancies(self._of, weights, tree=tree)

    def repair(
        self, weights: Collection[str] | None, record: Callable[[Event, Repairs], Append]
    ) -> Event:
        return upkeep.repair(self._of, self._appender, weights, record)
