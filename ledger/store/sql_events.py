"""One model's events over SQL, for SQLite and PostgreSQL; the port is `ledger.store.EventStore`."""

import logging
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from weightledger.ledger.errors import CorruptLedger, InvalidRequest, StorageError
from weightledger.ledger.events import Annotation, Event
from weightledger.ledger.sql.backend import Execute
from weightledger.ledger.sql.bulk import marks, pieces
from weightledger.ledger.sql.database import Database
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.sql.turns import Turn
from weightledger.ledger.store import (
    Activity,
    Append,
    EventFilter,
    LedgerStore,
    Listed,
    Note,
    RawEvent,
    Repairs,
    Snapshot,
    StateChange,
    blocks,
    blockwise,
    derived,
    erasing,
    payloads,
    rows,
    search,
    terms,
    tree_rows,
)
from weightledger.ledger.store.append import Appender
from weightledger.ledger.store.metric_rows import SqlMetrics

logger = logging.getLogger(__name__)

_BLOCKS_AT_A_TIME = 4  # that a writer writes, after the event that completed one
_PAGE = 1000  # events that `scan` holds at a time
_RAW_PAGE = 4096  # rows that `raw` gives at a time
_MOST_NUMBER = (1 << 63) - 1

_BY_KEY = f"{rows.SELECT} WHERE event_key = ?"
_LAST = f"{rows.SELECT} WHERE event_key BETWEEN ? AND ? ORDER BY event_key DESC LIMIT 1"
_RANGE = f"{rows.SELECT} WHERE event_key BETWEEN ? AND ? ORDER BY event_key LIMIT {_PAGE}"
_NEWS = f"{rows.SELECT_WITH_PAYLOAD} WHERE event_key BETWEEN ? AND ? ORDER BY event_key LIMIT ?"
_RAW = f"{rows.SELECT_FACTS} WHERE event_key BETWEEN ? AND ? AND model_id = ? ORDER BY event_key"
_STATE_CHANGE = (
    f"{rows.SELECT} WHERE event_key BETWEEN ? AND ? AND changes_state = 1"
    " ORDER BY event_key DESC LIMIT 1 OFFSET ?"
)
_BY_STATE = (
    f"{rows.SELECT} WHERE event_key BETWEEN ? AND ? AND changes_state = 1 AND state_after = ?"
    " ORDER BY event_key DESC LIMIT 1"
)
_STATES_BETWEEN = (
    "SELECT max(event_key) FROM events WHERE event_key BETWEEN ? AND ? AND changes_state = 1"
    " AND state_after BETWEEN ? AND ? GROUP BY state_after ORDER BY state_after LIMIT ?"
)
_BY_NUMBER = f"{rows.SELECT} WHERE model_id = ? AND series = ? AND number = ?"
_LAST_NUMBER = (  # numbers that are null are not in the index
    "SELECT max(number) FROM events WHERE model_id = ? AND series = ? AND number IS NOT NULL"
)
_LISTED = (
    f"SELECT number, event_key & {SEQ_MASK}, node, pinned FROM listed_versions WHERE model_id = ?"
)
_LISTED_BEFORE = f"{_LISTED} AND node <= ? ORDER BY node DESC, number DESC LIMIT 1"
_KEY = "SELECT event_key FROM events WHERE model_id = ? AND idempotency_key = ?"
_STATE_CHANGES = (
    f"SELECT event_key & {SEQ_MASK}, kind, node, parent, payload_size, forward_only FROM events"
    " WHERE event_key BETWEEN ? AND ? AND changes_state = 1 ORDER BY event_key"
)
_SNAPSHOTS = "SELECT node, manifest, size FROM snapshots WHERE model_id = ?"
_OLDER_SNAPSHOTS = f"{_SNAPSHOTS} AND node <= ? ORDER BY node DESC LIMIT ?"
_NEWER_SNAPSHOTS = f"{_SNAPSHOTS} AND node > ? ORDER BY node LIMIT ?"
_ANNOTATIONS = f"SELECT event_key & {SEQ_MASK}, actor, reason, metadata, salt FROM annotations"
_UPDATE_COUNTS = (
    "SELECT p.name, (SELECT t.number FROM touches t WHERE t.parameter_id = p.parameter_id"
    " ORDER BY t.event_key DESC LIMIT 1) FROM parameters p WHERE p.model_id = ? ORDER BY p.name"
)


class SqlEvents:
    """One registered model's events, annotations, versions and anchors in a database.

    Blobs in the same database are stored in an event's transaction; others before it, so that an
    event never refers to what is not durable. Safe to share between threads.
    """

    def __init__(self, home: LedgerStore, database: Database, appender: Appender) -> None:
        self.home = home
        self.model = appender.model
        self._database = database
        self._appender = appender
        self._id = appender.model_id
        self._turnstile = database.turnstile(self._id, self.model)
        self.metrics = SqlMetrics(database, self._id)
        self._unwritten = blockwise.Unwritten(self._id)
        self._blocks_written = 0

    def append(self, *items: Append) -> None:
        """Make events durable, all of them or nothing; see `AppendLog.append`."""
        self._appender.append(items)

    def turn(self) -> AbstractContextManager[Turn]:
        """This writer's turn; see `AppendLog.turn`."""
        return self._turnstile.turn()

    def head(self) -> Event:
        """The last event."""
        event = self._one(_LAST, *self._span())
        if event is None:
            raise CorruptLedger(f"the log of {self.model!r} has no event", seq=0)
        return event

    def event(self, seq: int) -> Event | None:
        """One event; CorruptLedger when the row does not match its header."""
        return self._one(_BY_KEY, self._key(seq))

    def annotation(self, seq: int) -> Annotation | None:
        """The free text beside an event."""
        return self.annotations([seq]).get(seq)

    def annotations(self, seqs: Iterable[int]) -> Mapping[int, Annotation]:
        """The free text beside each of some events, by seq; those without are left out."""
        found: dict[int, Annotation] = {}
        with self._database.look() as execute:
            for piece in pieces(self._key(seq) for seq in seqs):
                read = execute(f"{_ANNOTATIONS} WHERE event_key IN ({marks(len(piece))})", piece)
                found |= {seq: Annotation(*texts) for seq, *texts in read.fetchall()}
        return found

    def by_number(self, series: str, number: int) -> Event | None:
        """The event that is update n ("updates") or version n ("versions")."""
        if not 0 <= number <= _MOST_NUMBER:
            return None
        return self._one(_BY_NUMBER, self._id, series, number)

    def last_number(self, series: str) -> int | None:
        """The highest number of a series; None before the first."""
        with self._database.look() as execute:
            (number,) = execute(_LAST_NUMBER, (self._id, series)).fetchone()
        return None if number is None else int(number)

    def listed_versions(self) -> list[Listed]:
        """The versions that are not retired, by number."""
        return self._listed(f"{_LISTED} ORDER BY number", self._id)

    def listed_version(self, number: int) -> Listed | None:
        """The version with this number, if it is not retired."""
        return next(iter(self._listed(f"{_LISTED} AND number = ?", self._id, number)), None)

    def listed_before(self, node: int) -> Listed | None:
        """Of the versions that name this node or the nearest smaller one the newest."""
        return next(iter(self._listed(_LISTED_BEFORE, self._id, node)), None)

    def by_key(self, idempotency_key: str) -> Event | None:
        """The event that used this idempotency key; CorruptLedger when its indexes disagree."""
        key = idempotency_key
        with self._database.read() as execute:
            query = f"SELECT ({_KEY}), ({self._database.backend.KEY_AGAIN})"
            one, other = execute(query, (self._id, key, key, self._id)).fetchone()
            row = None if one is None else execute(_BY_KEY, (one,)).fetchone()
        if one != other or (one is not None and row is None):
            raise CorruptLedger(
                f"the indexes of idempotency keys do not agree on {key!r}. Nothing was recorded;"
                " run `weightledger verify`, then `weightledger repair`"
            )
        event = None if row is None else self._event(row)
        if event is not None and event.idempotency_key != key:
            raise CorruptLedger(
                f"the index of idempotency keys is damaged: it has event {event.seq} under {key!r}",
                seq=event.seq,
            )
        return event

    def by_state(self, digest: bytes) -> Event | None:
        """The last state-changing event that led to this state digest."""
        return self._one(_BY_STATE, *self._span(), digest)

    def states_between(self, first: bytes, last: bytes, limit: int) -> list[Event]:
        """Of each state whose digest lies within bounds, the last event that led to it."""
        with self._database.read() as execute:
            keys = execute(_STATES_BETWEEN, (*self._span(), first, last, limit)).fetchall()
            found = [execute(_BY_KEY, (key,)).fetchone() for (key,) in keys]
        return [self._event(row) for row in found]

    def at_time(self, recorded_at: int) -> Event | None:
        """The last event recorded at or before a time (UTC microseconds)."""
        with self._database.read() as execute:
            seq = search.seq_at(execute, self._id, recorded_at)
        return self.event(seq)

    def state_change_before(self, seq: int, back: int) -> Event | None:
        """The state-changing event `back` places before the one at or before `seq`."""
        if back < 0:
            return None
        first, last = self._key(0), self._key(seq)
        return self._one(_STATE_CHANGE, first, last, min(back, SEQ_MASK))

    def scan(self, start: int = 0, stop: int | None = None) -> Iterator[Event]:
        """Events with start <= seq < stop in order; CorruptLedger for a gap or a bad row.

        Reads in pages and holds no transaction between them.
        """
        expected = self._key(max(start, 0))
        last = self._key(SEQ_MASK if stop is None else stop - 1)
        while True:
            with self._database.look() as execute:
                page = execute(_RANGE, (expected, last)).fetchall()
            for row in page:
                if row[0] != expected:
                    seq = expected & SEQ_MASK
                    raise CorruptLedger(f"event {seq} is missing", seq=seq)
                yield self._event(row)
                expected += 1
            if len(page) < _PAGE:
                return

    def news(self, seq: int, most: int) -> list[tuple[Event, bytes | None]]:
        """Events after `seq` with their inline payloads; see `AppendLog.news`."""
        expected = self._key(seq + 1)
        with self._database.look() as execute:
            page = execute(_NEWS, (expected, self._key(SEQ_MASK), most)).fetchall()
        read: list[tuple[Event, bytes | None]] = []
        for *row, payload in page:
            if row[0] != expected:
                missing = expected & SEQ_MASK
                raise CorruptLedger(f"event {missing} is missing", seq=missing)
            event = self._event(row)
            read.append((event, None if payload is None else payloads.checked(event, payload)))
            expected += 1
        return read

    def raw(self, start: int, stop: int) -> Iterator[tuple[list[RawEvent], Mapping[int, Note]]]:
        """Events as they are stored, unchecked; see `RawLog.raw`."""
        for first in range(start, stop, _RAW_PAGE):
            bounds = self._key(first), self._key(min(first + _RAW_PAGE, stop) - 1)
            with self._database.read() as execute:
                page = execute(_RAW, (*bounds, self._id)).fetchall()
                notes = execute(f"{_ANNOTATIONS} WHERE event_key BETWEEN ? AND ?", bounds)
                beside = {note[0]: note for note in notes.fetchall()}
            yield page, beside

    def tree_hashes(self, level: int, start: int, stop: int) -> list[bytes]:
        """Nodes of the hash tree; see `RawLog.tree_hashes`."""
        with self._database.read() as execute:
            return tree_rows.hashes(execute, self._id, level, start, stop)

    def select(self, where: EventFilter, *, limit: int, newest_first: bool = True) -> list[Event]:
        """Events that pass the filter, at most `limit`."""
        if where.blockwise:
            return self._select_blockwise(where, limit, newest_first)
        with self._database.read() as execute:
            found = search.select(
                execute, self._database.backend, self._id, where, limit, newest_first
            )
        return [self._event(row) for row in found]

    def _select_blockwise(self, where: EventFilter, limit: int, newest_first: bool) -> list[Event]:
        if limit < 1:
            return []
        self._write_blocks(sys.maxsize)
        found: list[Event] = []
        waiting: list[int] = []
        with self._database.read() as execute:
            low, high = search.span(execute, self._id, where)
            bounds = low, min(high, search.last_seq(execute, self._id))
            names = (
                {}
                if where.parameter is None
                else search.matching(execute, self._id, where.parameter)
            )
            wanted = sorted(names.values())
            backend = self._database.backend
            for seqs in blockwise.first_hits(
                execute, backend, self._id, self._unwritten, where, wanted, bounds, newest_first
            ):
                waiting += seqs
                if len(found) + len(waiting) >= limit:
                    found += self._passing(execute, where, waiting[:limit], set(wanted))
                    waiting = waiting[limit:]
                    if len(found) >= limit:
                        return found[:limit]
            found += self._passing(execute, where, waiting, set(wanted))
        return found[:limit]

    def _passing(
        self, execute: Execute, where: EventFilter, seqs: Sequence[int], names: set[str]
    ) -> list[Event]:
        """Of the events with these seqs those that pass a filter, in the same order."""
        passing = []
        for piece in pieces(map(self._key, seqs)):
            keys = marks(len(piece))
            read = execute(f"{rows.SELECT} WHERE event_key IN ({keys})", piece).fetchall()
            events = {row[0]: self._event(row) for row in read}
            texts = execute(f"{_ANNOTATIONS} WHERE event_key IN ({keys})", piece).fetchall()
            notes = {seq: Annotation(*rest) for seq, *rest in texts}
            for key in piece:
                event = events[key]
                if terms.passes(where, event, notes.get(event.seq), names):
                    passing.append(event)
        return passing

    def activity(self, where: EventFilter) -> list[Activity]:
        """How many events pass, by day, kind and actor; see `EventLookup.activity`."""
        if where.blockwise or where.parameter is not None:
            raise InvalidRequest("activity is asked for by kinds, actors, times and seqs")
        self._write_blocks(sys.maxsize)
        with self._database.read() as execute:
            low, high = search.span(execute, self._id, where)
            last = search.last_seq(execute, self._id)
            bounds = low, min(high, last)
            backend = self._database.backend
            counted = blockwise.counted(execute, backend, self._id, self._unwritten, bounds, last)
        return sorted(
            (
                Activity(*key, count)
                for key, count in counted.items()
                if (not where.kinds or key[1] in where.kinds)
                and (not where.actors or key[2] in where.actors)
            ),
            key=lambda one: (-one.day, one.kind, one.actor or ""),
        )

    def index(self) -> None:
        """Write blocks of the search that are complete; see `EventLookup.index`."""
        self._write_blocks(_BLOCKS_AT_A_TIME)

    def _write_blocks(self, most: int) -> None:
        """Write complete blocks that are not written; where that cannot be, they are read anew."""
        with self._database.look() as execute:
            complete = (search.last_seq(execute, self._id) + 1) // blocks.BLOCK
            if complete <= self._blocks_written:
                return
            there = blocks.written(execute, self._id, 0, complete)
        missing = sorted(set(range(complete)) - there)
        for number in missing[:most]:
            try:
                # In a turn, so that nothing is redacted between the reading and the writing.
                with self.turn(), self._database.write() as execute:
                    last = (number + 1) * blocks.BLOCK - 1
                    block = blocks.read_block(execute, self._id, number, last)
                    blocks.write_block(execute, block, self._id)
            except StorageError as error:
                logger.info("blocks of the search are not written: %s", error)
                break
        else:
            if len(missing) <= most:
                self._blocks_written = complete

    def state_changes(self, start: int, stop: int) -> list[StateChange]:
        """State-changing events with start <= seq < stop, in order."""
        bounds = self._key(max(start, 0)), self._key(stop - 1)
        with self._database.look() as execute:
            return list(map(StateChange._make, execute(_STATE_CHANGES, bounds)))

    def update_counts(self) -> Mapping[str, int]:
        """How many applied updates touched each full state name (those with at least one)."""
        with self._database.look() as execute:
            found = execute(_UPDATE_COUNTS, (self._id,)).fetchall()
        return {name: count for name, count in found if count is not None}

    def payload(self, event: Event) -> bytes:
        """The event's payload, checked against its digests; CorruptLedger names the seq."""
        return self.payloads([event])[0]

    def payloads(self, events: Sequence[Event]) -> list[bytes]:
        """The payloads of events, each as of `payload`; the inline ones are read together."""
        inline: dict[int, bytes | None] = {}
        with self._database.look() as execute:
            for piece in pieces(self._key(event.seq) for event in events):
                read = execute(
                    f"SELECT event_key & {SEQ_MASK}, payload FROM events"
                    f" WHERE event_key IN ({marks(len(piece))})",
                    tuple(piece),
                )
                inline.update(read.fetchall())
        return [self._payload(event, inline) for event in events]

    def _payload(self, event: Event, inline: Mapping[int, bytes | None]) -> bytes:
        if event.seq not in inline:
            raise CorruptLedger(f"event {event.seq} is missing", seq=event.seq)
        held = inline[event.seq]
        if held is None:
            return payloads.from_blobs(event, self.home.blobs)
        return payloads.checked(event, held)

    def snapshots(self) -> list[Snapshot]:
        """The anchors of a model, by node."""
        with self._database.look() as execute:
            found = execute(f"{_SNAPSHOTS} ORDER BY node", (self._id,))
            return [Snapshot(*row) for row in found]

    def snapshots_near(self, node: int, most: int) -> list[Snapshot]:
        """Of the anchors at or before a node the last `most`, and the first `most` after it."""
        with self._database.read() as execute:
            older = execute(_OLDER_SNAPSHOTS, (self._id, node, most)).fetchall()
            newer = execute(_NEWER_SNAPSHOTS, (self._id, node, most)).fetchall()
        return [Snapshot(*row) for row in (*reversed(older), *newer)]

    def add_snapshot(self, snapshot: Snapshot, blobs: Iterable[bytes] = ()) -> set[bytes]:
        """Remember an anchor, if all of these blobs are stored; see `Anchors.add_snapshot`."""
        return self._appender.add_snapshot(snapshot, blobs)

    def discrepancies(self, weights: Collection[str] | None, *, tree: bool = True) -> list[str]:
        """Where what is kept beside the log is not what it says; see `Upkeep`."""
        with self._database.read() as execute:
            wanted = derived.derive(execute, self._id, weights)
            return derived.differences(execute, wanted, tree=tree).described()

    def repair(
        self, weights: Collection[str] | None, record: Callable[[Event, Repairs], Append]
    ) -> Event:
        """Derive what is kept beside the log anew; see `Upkeep`."""
        backend = self._database.backend
        with self._database.write() as execute:
            wanted = derived.derive(execute, self._id, weights)
            found = derived.differences(execute, wanted)
            backend.unprotect(execute, derived.PROTECTED)
            derived.repair(execute, wanted, found)
            backend.protect(execute, derived.PROTECTED)
            left = derived.differences(execute, wanted).described()
            if left:
                raise CorruptLedger(f"it could not be put right: {'; '.join(left)}")
            head = self._event(execute(_LAST, self._span()).fetchone())
            item = record(head, found.counts())
            self._appender.append_within(execute, item)
        return item.event

    def redact(
        self, seqs: Sequence[int], texts: Sequence[str], record: Callable[[Event], Append]
    ) -> Event:
        """Take texts away from events, and say so in the log; see `Redactable`."""
        backend = self._database.backend
        keys = [self._key(seq) for seq in seqs]
        with self.turn(), self._database.write() as execute:
            item = record(self._event(execute(_LAST, self._span()).fetchone()))
            backend.unprotect(execute, erasing.PROTECTED)
            erasing.erase(execute, keys, texts)
            backend.protect(execute, erasing.PROTECTED)
            blocks.forget(execute, self._id, {seq // blocks.BLOCK for seq in seqs})
            self._appender.append_within(execute, item)
        self._unwritten = blockwise.Unwritten(self._id)
        self._blocks_written = 0
        return item.event

    def _one(self, sql: str, *params: Any) -> Event | None:
        with self._database.look() as execute:
            row = execute(sql, params).fetchone()
        return None if row is None else self._event(row)

    def _listed(self, sql: str, *params: int) -> list[Listed]:
        with self._database.look() as execute:
            rows_listed = execute(sql, params).fetchall()
        return [
            Listed(number, seq, node, bool(pinned)) for number, seq, node, pinned in rows_listed
        ]

    def _event(self, row: Any) -> Event:
        return rows.from_row(row, self._id, self.model)

    def _key(self, seq: int) -> int:
        return rows.key_of(self._id, seq)

    def _span(self) -> tuple[int, int]:
        """The first and the last key that the model's events can have."""
        return self._key(0), self._key(SEQ_MASK)
