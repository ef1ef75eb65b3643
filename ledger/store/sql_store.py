"""The event store over SQL, for SQLite and PostgreSQL; the port is `ledger.store.EventStore`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from weightledger.ledger.blobs import BlobStore
from weightledger.ledger.blobs.location import open_blobs
from weightledger.ledger.blobs.sql import SqlBlobs
from weightledger.ledger.errors import CorruptLedger, NotFound
from weightledger.ledger.events.event import Annotation, Event
from weightledger.ledger.sql.bulk import marks, pieces
from weightledger.ledger.sql.database import Database
from weightledger.ledger.sql.schema import open_schema
from weightledger.ledger.sql.tables import SEQ_BITS, SEQ_MASK
from weightledger.ledger.store import (
    Append,
    EventFilter,
    Listed,
    Note,
    Snapshot,
    Step,
    rows,
    search,
)
from weightledger.ledger.store.append import Appender, remember_snapshot
from weightledger.ledger.store.rows import key_of
from weightledger.ledger.tensors.digest import content_digest

_PAGE = 1000  # events that `scan` holds at a time
_RAW_PAGE = 4096  # rows that `raw` gives at a time
_MOST_NUMBER = (1 << 63) - 1

_BY_KEY = f"{rows.SELECT} WHERE event_key = ?"
_LAST = f"{rows.SELECT} WHERE event_key BETWEEN ? AND ? ORDER BY event_key DESC LIMIT 1"
_RANGE = f"{rows.SELECT} WHERE event_key BETWEEN ? AND ? ORDER BY event_key LIMIT {_PAGE}"
_RAW = f"{rows.SELECT} WHERE event_key BETWEEN ? AND ? ORDER BY event_key"
_STATE_CHANGE = (
    f"{rows.SELECT} WHERE event_key BETWEEN ? AND ? AND changes_state = 1"
    " ORDER BY event_key DESC LIMIT 1 OFFSET ?"
)
_BY_STATE = (
    f"{rows.SELECT} WHERE event_key BETWEEN ? AND ? AND changes_state = 1 AND state_after = ?"
    " ORDER BY event_key DESC LIMIT 1"
)
_BY_NUMBER = f"{rows.SELECT} WHERE model_id = ? AND series = ? AND number = ?"
_LAST_NUMBER = (  # numbers that are null are not in the index
    "SELECT max(number) FROM events WHERE model_id = ? AND series = ? AND number IS NOT NULL"
)
_LISTED = (
    f"SELECT number, event_key & {SEQ_MASK}, node, pinned FROM listed_versions WHERE model_id = ?"
)
_LISTED_BEFORE = f"{_LISTED} AND node <= ? ORDER BY node DESC, number DESC LIMIT 1"
_BY_IDEMPOTENCY = f"{rows.SELECT} WHERE model_id = ? AND idempotency_key = ?"
_STEPS = (
    f"SELECT event_key & {SEQ_MASK}, kind, node, parent, payload_size, forward_only FROM events"
    " WHERE event_key BETWEEN ? AND ? AND changes_state = 1 ORDER BY event_key"
)
_SNAPSHOTS = "SELECT node, manifest, size FROM snapshots WHERE model_id = ?"
_OLDER_SNAPSHOTS = f"{_SNAPSHOTS} AND node <= ? ORDER BY node DESC LIMIT ?"
_NEWER_SNAPSHOTS = f"{_SNAPSHOTS} AND node > ? ORDER BY node LIMIT ?"
_ANNOTATIONS = "SELECT event_key, actor, reason, metadata, salt FROM annotations"
_UPDATE_COUNTS = (
    "SELECT p.name, (SELECT t.number FROM touches t WHERE t.parameter_id = p.parameter_id"
    " ORDER BY t.event_key DESC LIMIT 1) FROM parameters p WHERE p.model_id = ? ORDER BY p.name"
)


class SqlStore:
    """Events, annotations and snapshots in a database; `blobs` are the blobs beside them.

    Blobs in the same database are stored in an event's transaction; others before it, so that an
    event never refers to what is not durable.

    Safe to share between threads; any number of processes may use the same database.
    """

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self.blobs = blobs
        self._database = database
        self._names: dict[int, str] = {}
        self._appender = Appender(database)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        upgrade: bool = True,
        guarded: bool = True,
        blob_url: str | None = None,
    ) -> "SqlStore":
        """Open a database by SQLAlchemy URL, making or upgrading its tables.

        `blob_url` is as for `ledger.blobs.location.open_blobs`. Raises SchemaMismatch for a newer
        or foreign database, one that is not append-only (with `guarded=False` it is opened all the
        same, to be looked into), or with `upgrade=False` one without this release's tables;
        InvalidRequest when the ledger has another blob store; StorageError when the database or a
        new blob store cannot be reached.
        """
        database = Database.connect(url, create=upgrade)
        try:
            open_schema(database, upgrade=upgrade, guarded=guarded)
            return cls(database, open_blobs(blob_url, database, create=upgrade))
        except BaseException:
            database.close()
            raise

    @property
    def url(self) -> str:
        """Where another process opens the same database; may hold a password."""
        return self._database.url

    def close(self) -> None:
        """Give back every connection; further use is a StorageError."""
        self._database.close()

    def weaknesses(self) -> list[str]:
        """What no longer keeps the log append-only, in words; empty when all is well."""
        with self._database.read() as execute:
            return self._database.backend.weaknesses(execute)

    def models(self) -> Mapping[str, int]:
        """Names of the registered models and their ids, in order of registration."""
        with self._database.read() as execute:
            found = execute("SELECT name, model_id FROM models ORDER BY model_id").fetchall()
        return dict(found)

    def append(self, *items: Append) -> None:
        """Make events durable, all of them or nothing; see `EventStore.append`."""
        if not isinstance(self.blobs, SqlBlobs):
            for item in items:
                for digest, data in item.blobs.items():
                    self.blobs.put(digest, data)
            items = tuple(replace(item, blobs={}) for item in items)
        self._appender.append(items)

    def head(self, model_id: int) -> Event:
        """The last event of a model; NotFound for an id that is none."""
        event = self._one(model_id, _LAST, *_all(model_id))
        if event is None:
            raise NotFound(f"no model has the id {model_id}")
        return event

    def event(self, model_id: int, seq: int) -> Event | None:
        """One event; CorruptLedger when the row does not match its header."""
        return self._one(model_id, _BY_KEY, key_of(model_id, seq))

    def annotation(self, model_id: int, seq: int) -> Annotation | None:
        """The free text beside an event."""
        return self.annotations(model_id, [seq]).get(seq)

    def annotations(self, model_id: int, seqs: Iterable[int]) -> Mapping[int, Annotation]:
        """The free text beside each of some events, by seq; those without are left out."""
        found: dict[int, Annotation] = {}
        with self._database.read() as execute:
            for piece in pieces(key_of(model_id, seq) for seq in seqs):
                read = execute(f"{_ANNOTATIONS} WHERE event_key IN ({marks(len(piece))})", piece)
                found |= {key & SEQ_MASK: Annotation(*texts) for key, *texts in read.fetchall()}
        return found

    def by_number(self, model_id: int, series: str, number: int) -> Event | None:
        """The event that is update n ("updates") or version n ("versions")."""
        if not 0 <= number <= _MOST_NUMBER:
            return None
        return self._one(model_id, _BY_NUMBER, model_id, series, number)

    def last_number(self, model_id: int, series: str) -> int | None:
        """The highest number of a series; None before the first."""
        with self._database.read() as execute:
            (number,) = execute(_LAST_NUMBER, (model_id, series)).fetchone()
        return None if number is None else int(number)

    def listed_versions(self, model_id: int) -> list[Listed]:
        """The versions that are not retired, by number."""
        return self._listed(f"{_LISTED} ORDER BY number", model_id)

    def listed_version(self, model_id: int, number: int) -> Listed | None:
        """The version with this number, if it is not retired."""
        return next(iter(self._listed(f"{_LISTED} AND number = ?", model_id, number)), None)

    def listed_before(self, model_id: int, node: int) -> Listed | None:
        """Of the versions that name this node or the nearest smaller one the newest."""
        return next(iter(self._listed(_LISTED_BEFORE, model_id, node)), None)

    def by_key(self, model_id: int, idempotency_key: str) -> Event | None:
        """The event that used this idempotency key."""
        return self._one(model_id, _BY_IDEMPOTENCY, model_id, idempotency_key)

    def by_state(self, model_id: int, digest: bytes) -> Event | None:
        """The last state-changing event that led to this state digest."""
        return self._one(model_id, _BY_STATE, *_all(model_id), digest)

    def at_time(self, model_id: int, recorded_at: int) -> Event | None:
        """The last event recorded at or before a time (UTC microseconds)."""
        with self._database.read() as execute:
            seq = search.seq_at(execute, model_id, recorded_at)
        return self.event(model_id, seq)

    def state_change_before(self, model_id: int, seq: int, back: int) -> Event | None:
        """The state-changing event `back` places before the one at or before `seq`."""
        if back < 0:
            return None
        first, last = key_of(model_id, 0), key_of(model_id, seq)
        return self._one(model_id, _STATE_CHANGE, first, last, min(back, SEQ_MASK))

    def scan(self, model_id: int, start: int = 0, stop: int | None = None) -> Iterator[Event]:
        """Events with start <= seq < stop in order; CorruptLedger for a gap or a bad row.

        Reads in pages and holds no transaction between them.
        """
        model = self._name(model_id)
        expected = max(start, 0)
        last = key_of(model_id, SEQ_MASK if stop is None else stop - 1)
        while True:
            with self._database.read() as execute:
                page = execute(_RANGE, (key_of(model_id, expected), last)).fetchall()
            for row in page:
                if row[0] != key_of(model_id, expected):
                    raise CorruptLedger(f"event {expected} is missing", seq=expected)
                yield rows.from_row(row, model)
                expected += 1
            if len(page) < _PAGE:
                return

    def raw(
        self, model_id: int, start: int, stop: int
    ) -> Iterator[tuple[list[Any], Mapping[int, Note]]]:
        """Rows of `rows.COLUMNS` with start <= seq < stop in order, unchecked.

        They come in pages, each with the annotations beside it by their events' keys.
        """
        for first in range(start, stop, _RAW_PAGE):
            bounds = key_of(model_id, first), key_of(model_id, min(first + _RAW_PAGE, stop) - 1)
            with self._database.read() as execute:
                page = execute(_RAW, bounds).fetchall()
                notes = execute(f"{_ANNOTATIONS} WHERE event_key BETWEEN ? AND ?", bounds)
                beside = {note[0]: note for note in notes.fetchall()}
            yield page, beside

    def select(
        self, model_id: int, where: EventFilter, *, limit: int, newest_first: bool = True
    ) -> list[Event]:
        """Events that pass the filter, at most `limit`."""
        with self._database.read() as execute:
            found = search.select(
                execute, self._database.backend, model_id, where, limit, newest_first
            )
        model = self._name(model_id) if found else ""
        return [rows.from_row(row, model) for row in found]

    def steps(self, model_id: int, start: int, stop: int) -> list[Step]:
        """State-changing events with start <= seq < stop, in order."""
        bounds = key_of(model_id, max(start, 0)), key_of(model_id, stop - 1)
        with self._database.read() as execute:
            return list(map(Step._make, execute(_STEPS, bounds)))

    def update_counts(self, model_id: int) -> Mapping[str, int]:
        """How many applied updates touched each full state name (those with at least one)."""
        with self._database.read() as execute:
            found = execute(_UPDATE_COUNTS, (model_id,)).fetchall()
        return {name: count for name, count in found if count is not None}

    def payload(self, event: Event) -> bytes:
        """The event's payload, checked against its digests; CorruptLedger names the seq."""
        return self.payloads([event])[0]

    def payloads(self, events: Sequence[Event]) -> list[bytes]:
        """The payloads of events of one model, each as of `payload`; the inline ones are read
        together."""
        inline: dict[int, bytes | None] = {}
        with self._database.read() as execute:
            model_id = self._appender.model_id(execute, events[0].model) if events else None
            if model_id is not None:
                for piece in pieces(key_of(model_id, event.seq) for event in events):
                    found = execute(
                        f"SELECT event_key & {SEQ_MASK}, payload FROM events"
                        f" WHERE event_key IN ({marks(len(piece))})",
                        tuple(piece),
                    )
                    inline.update(found.fetchall())
        return [self._payload(event, inline) for event in events]

    def _payload(self, event: Event, inline: Mapping[int, bytes | None]) -> bytes:
        if event.seq not in inline:
            raise CorruptLedger(f"event {event.seq} is missing", seq=event.seq)
        held = inline[event.seq]
        if held is not None:
            return _checked(event, held)
        try:
            return b"".join([self.blobs.get(ref.digest) for ref in event.payload])
        except CorruptLedger as error:
            raise CorruptLedger(f"payload of event {event.seq}: {error}", seq=event.seq) from None

    def snapshots(self, model_id: int) -> list[Snapshot]:
        """The anchors of a model, by node."""
        with self._database.read() as execute:
            found = execute(f"{_SNAPSHOTS} ORDER BY node", (model_id,))
            return [Snapshot(*row) for row in found]

    def snapshots_near(self, model_id: int, node: int, most: int) -> list[Snapshot]:
        """Of the anchors at or before a node the last `most`, and the first `most` after it."""
        with self._database.read() as execute:
            older = execute(_OLDER_SNAPSHOTS, (model_id, node, most)).fetchall()
            newer = execute(_NEWER_SNAPSHOTS, (model_id, node, most)).fetchall()
        return [Snapshot(*row) for row in (*reversed(older), *newer)]

    def add_snapshot(self, model_id: int, snapshot: Snapshot) -> None:
        """Remember an anchor whose blobs are already stored; adding it twice is fine."""
        with self._database.write() as execute:
            remember_snapshot(execute, model_id, snapshot)

    def _one(self, model_id: int, sql: str, *params: Any) -> Event | None:
        with self._database.read() as execute:
            row = execute(sql, params).fetchone()
        return None if row is None else rows.from_row(row, self._name(model_id))

    def _listed(self, sql: str, *params: int) -> list[Listed]:
        with self._database.read() as execute:
            found = execute(sql, params).fetchall()
        return [Listed(number, seq, node, bool(pinned)) for number, seq, node, pinned in found]

    def _name(self, model_id: int) -> str:
        if model_id not in self._names:
            self._names |= {number: name for name, number in self.models().items()}
        if model_id not in self._names:
            raise NotFound(f"no model has the id {model_id}")
        return self._names[model_id]


def _all(model_id: int) -> tuple[int, int]:
    """The first and the last key that a model's events can have."""
    return model_id << SEQ_BITS, (model_id << SEQ_BITS) | SEQ_MASK


def _checked(event: Event, payload: bytes) -> bytes:
    """An inline payload, if it is the pieces that the header names."""
    at = 0
    for ref in event.payload:
        if content_digest(payload[at : at + ref.size]) != ref.digest:
            break
        at += ref.size
    else:
        if at == len(payload):
            return payload
    raise CorruptLedger(f"payload of event {event.seq} does not match its digest", seq=event.seq)
