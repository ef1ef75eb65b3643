"""Appending: one event with all that belongs to it, in one transaction of few statements."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from msgspec.structs import replace

from weightledger.ledger.blobs import BlobStore, Buffer
from weightledger.ledger.blobs.sql import SqlBlobs, store_blobs, touch_blobs
from weightledger.ledger.blobs.tenants import Tenancy
from weightledger.ledger.errors import InvalidRequest, SeqTaken, StorageBusy, StorageError
from weightledger.ledger.events import (
    INLINE_BYTES,
    PINS,
    REDACTIONS,
    RETIRED,
    UPDATED,
    VERSIONS,
    Event,
)
from weightledger.ledger.events.bodies import Redaction, VersionCreated, body_of, pin_of
from weightledger.ledger.sql.backend import Backend, Execute
from weightledger.ledger.sql.bulk import insert_rows
from weightledger.ledger.sql.database import Database
from weightledger.ledger.store import erasing, rows, small_events, touches, tree_rows
from weightledger.ledger.store.attached import Append, Attached, Snapshot

# Small events that one message brings to the server.
_MOST_TOGETHER = 64

_REGISTER = "INSERT INTO models (name) VALUES (?) RETURNING model_id"
_ANNOTATE = (
    "INSERT INTO annotations (event_key, kind, actor, reason, metadata, salt)"
    " VALUES (?, ?, ?, ?, ?, ?)"
)
_LIST = (
    "INSERT INTO listed_versions (model_id, number, event_key, node, pinned) VALUES (?, ?, ?, ?, 0)"
)
_PIN = "UPDATE listed_versions SET pinned = ? WHERE model_id = ? AND number = ?"
_UNLIST = "DELETE FROM listed_versions WHERE model_id = ? AND number = ?"
_SNAPSHOT = (
    "INSERT INTO snapshots (model_id, node, manifest, size) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (model_id, node) DO NOTHING"
)
_FORGET = "DELETE FROM snapshots WHERE model_id = ? AND node = ?"
# Their events change or delete rows that stand beside others.
_CHANGING = frozenset((RETIRED, PINS, REDACTIONS))


def register(database: Database, blobs: BlobStore, first: Append) -> int:
    """Write a model's first event; gives the model's id. SeqTaken when another was first."""
    with _durable_blobs([first], blobs) as (first,), database.write() as execute:
        event, _, attached = first
        (model_id,) = execute(_REGISTER, (event.model,)).fetchone()
        key = _append_row(execute, database.name, model_id, event, attached.inline)
        _name_parameters(execute, model_id, attached.parameters)
        in_database = isinstance(blobs, SqlBlobs)
        _append_rest(execute, database.backend, model_id, key, first, in_database)
    return int(model_id)


class Appender:
    """The writing half of one model's store; remembers its parameters' ids, once durable."""

    def __init__(
        self, database: Database, blobs: BlobStore, tenancy: Tenancy, model: str, model_id: int
    ) -> None:
        self._turnstile = database.turnstile(model_id, model)
        self.model = model
        self.model_id = model_id
        self._database = database
        self._blobs = blobs
        self._tenancy = tenancy
        self._parameters: dict[str, int] = {}

    def add_snapshot(self, snapshot: Snapshot, blobs: Iterable[bytes]) -> set[bytes]:
        """See `Anchors.add_snapshot`."""
        if isinstance(self._blobs, SqlBlobs):
            with self._database.write() as execute:
                missing = touch_blobs(execute, self._database.backend, blobs)
                if not missing:
                    remember_snapshot(execute, self.model_id, snapshot)
            return missing
        self._tenancy.settle()
        with self._blobs.held(blobs) as missing:
            if not missing:
                with self._database.write() as execute:
                    remember_snapshot(execute, self.model_id, snapshot)
        return missing

    def append(self, items: Sequence[Append]) -> None:
        """See `AppendLog.append`."""
        for event, _, _ in items:
            if event.model != self.model:
                raise InvalidRequest(
                    f"an event of {event.model!r} is not appended to {self.model!r}"
                )
        if self._database.backend.WRITES_ALONE and self._append_small(items):
            self._database.wakeups.committed(self.model_id)
            return
        if _refer_to_blobs(items):
            self._tenancy.settle()
        self._take_turn(items)
        with _durable_blobs(items, self._blobs) as items, self._database.write() as execute:
            learnt = [self._append(execute, item) for item in items]
        for fresh in learnt:
            if fresh:
                self._parameters |= fresh
        self._database.wakeups.committed(self.model_id)

    def _append_small(self, items: Sequence[Append]) -> bool:
        """Write small events by one statement, or with the end of the turn by a few, where that
        can be: whether they are written. For a backend that `WRITES_ALONE`."""
        if len(items) > _MOST_TOGETHER or not all(map(self._stands_alone, items)):
            return False
        for event, _, attached in items:
            _require_size(event, attached)
        condition = self._turnstile.condition
        parts = [*small_events.parts([(item, self._known_ids(item)) for item in items])]
        after: Event | None = None
        statements = []
        for part in parts:
            backend = self._database.backend
            statements.append(
                small_events.statement(backend, self.model_id, part, condition, after)
            )
            condition, after = None, part[-1][0][0]  # what did not come behind ours is not ours
        lock = None
        if self._turnstile.condition is None or len(parts) > 1:
            lock = self._turnstile.lent()
        if lock is None and len(parts) > 1:
            return False
        try:
            if lock is None:
                written = self._database.write_alone(*statements[0])
            else:
                written = self._database.write_ending(lock, statements)
        except SeqTaken:
            self._turnstile.take()
            raise
        if written is None:
            return False
        if not written[0][0]:
            self._turnstile.take()
            raise SeqTaken("another writer has its turn")
        for part, (_, stored) in zip(parts, written, strict=True):
            _require_stored(stored, len(part), self._database.name, part[0][0][0].seq)
        return True

    def _known_ids(self, item: Append) -> list[int]:
        return [self._parameters[name] for name in dict.fromkeys(_counted(item))]

    def _stands_alone(self, item: Append) -> bool:
        """Whether an event is a small one, all of which one statement writes."""
        event, _, attached = item
        return (
            event.series not in _CHANGING
            and not attached.blobs
            and not event.blobs
            and attached.snapshot is None
            and not attached.dropped_snapshots
            and not tree_rows.grows(event.seq)
            and self._parameters.keys() >= set(_counted(item))
        )

    def _take_turn(self, items: Sequence[Append]) -> None:
        """Wait for the turn where that was put off; SeqTaken, with the turn had, where somebody
        wrote until then."""
        if self._turnstile.take():
            head = self._turnstile.head
            if head is not None and head >= items[0][0].seq:
                raise SeqTaken("another writer had its turn")

    def append_within(self, execute: Execute, item: Append) -> None:
        """Write one event inside a transaction that is under way and may have changed ids."""
        self._parameters = {}
        self._append(execute, item)

    def _append(self, execute: Execute, item: Append) -> dict[str, int]:
        """Write one event; gives what is now known of parameters.

        The event's row comes first, so who lost the race writes nothing else.
        """
        event, note, attached = item
        fresh: dict[str, int] = {}
        backend = self._database.backend
        key = _append_row(execute, self._database.name, self.model_id, event, attached.inline)
        counted = _counted(item)
        if counted:
            ids, fresh = self._parameter_ids(execute, counted)
            rows_of, its = touches.source(backend, ids)
            execute(touches.counting(rows_of), (key, note.actor, its))
        in_database = isinstance(self._blobs, SqlBlobs)
        _append_rest(execute, backend, self.model_id, key, item, in_database)
        return fresh

    def _parameter_ids(
        self, execute: Execute, names: Sequence[str]
    ) -> tuple[list[int], dict[str, int]]:
        """Ids of parameters, and those that are to be remembered when the event is durable."""
        known = self._parameters
        fresh: dict[str, int] = {}
        if not known.keys() >= set(names):
            known = fresh = _read_parameters(execute, self.model_id)
            unnamed = [name for name in dict.fromkeys(names) if name not in fresh]
            if unnamed:
                _name_parameters(execute, self.model_id, unnamed)
                known = fresh = _read_parameters(execute, self.model_id)
        return [known[name] for name in dict.fromkeys(names)], fresh


def _counted(item: Append) -> Sequence[str]:
    """The parameters that an event is counted as an update of."""
    event, _, attached = item
    return attached.parameters if event.kind == UPDATED else ()


def _durable_blobs(
    items: Sequence[Append], blobs: BlobStore
) -> AbstractContextManager[Sequence[Append]]:
    """The events, whose blobs are written with them, or, where they live elsewhere, before.

    In the block those are there and stay: a writer may have been suspended after it put them.
    """
    for event, _, attached in items:
        _require_size(event, attached)
    if isinstance(blobs, SqlBlobs) or not _refer_to_blobs(items):
        return nullcontext(items)
    return _held_blobs(items, blobs)


def _refer_to_blobs(items: Sequence[Append]) -> bool:
    return any(attached.blobs or event.blobs for event, _, attached in items)


@contextmanager
def _held_blobs(items: Sequence[Append], blobs: BlobStore) -> Iterator[Sequence[Append]]:
    put: dict[bytes, Buffer] = {}
    for _, _, attached in items:
        put.update(attached.blobs)
    wanted = put.keys() | {digest for event, _, _ in items for digest in event.blobs}
    for digest, data in put.items():
        blobs.put(digest, data)
    with blobs.held(wanted) as missing:
        _require_given(missing - put.keys())
        for digest in missing:
            blobs.put(digest, put[digest])
        yield [(event, note, replace(attached, blobs={})) for event, note, attached in items]


def _require_size(event: Event, attached: Attached) -> None:
    size, inline = event.payload_size, attached.inline
    if inline is not None and not len(inline) == size <= INLINE_BYTES:
        raise InvalidRequest(
            f"an inline payload has {size} bytes by its header and at most {INLINE_BYTES}, "
            f"got {len(inline)}"
        )


def _require_given(missing: Collection[bytes]) -> None:
    """Raise unless everything that an event refers to and does not bring is there."""
    if missing:
        raise StorageBusy(
            f"blob {min(missing).hex()} was collected while an event was made that refers to it;"
            " retry"
        )


def _append_row(
    execute: Execute, where: str, model_id: int, event: Event, inline: bytes | None
) -> int:
    """Write an event's row; gives its key."""
    row = rows.to_row(model_id, event)
    inserted = execute(rows.INSERT, (*row, inline))
    _require_stored(inserted.rowcount, 1, where, event.seq)
    key: int = row[0]
    return key


def _require_stored(count: int, wanted: int, where: str, seq: int) -> None:
    """Raise unless so many events were stored, of which the first has this seq."""
    if count == wanted:
        return
    # A rule or a trigger of someone else's.
    if wanted == 1:
        raise StorageError(f"{where} took event {seq} without storing it; nothing was recorded")
    raise StorageError(f"{where} took {wanted} events from {seq} on and stored {count} of them")


def _append_rest(
    execute: Execute, backend: Backend, model_id: int, key: int, item: Append, in_database: bool
) -> None:
    """What stands beside the event: texts, the list of versions, blobs and snapshots."""
    event, note, attached = item
    if note:
        texts = (note.actor, note.reason, note.metadata)
        execute(_ANNOTATE, (key, event.kind, *texts, note.salt))
    if event.series == VERSIONS:
        execute(_LIST, (model_id, event.number, key, body_of(event, VersionCreated).names.node))
    elif event.series == RETIRED:
        execute(_UNLIST, (model_id, event.number))
    elif event.series == PINS:
        number, pinned = pin_of(event)
        execute(_PIN, (int(pinned), model_id, number))
    elif event.series == REDACTIONS:
        erasing.erase(execute, backend, model_id, event.seq, body_of(event, Redaction))
    if in_database:
        if attached.blobs:
            store_blobs(execute, backend, attached.blobs)
        others = set(event.blobs) - attached.blobs.keys()
        if others:
            _require_given(touch_blobs(execute, backend, others))
    if attached.snapshot is not None:
        remember_snapshot(execute, model_id, attached.snapshot)
    for node in attached.dropped_snapshots:
        execute(_FORGET, (model_id, node))
    tree_rows.grow(execute, model_id, event.seq)


def remember_snapshot(execute: Execute, model_id: int, snapshot: Snapshot) -> None:
    """Write a snapshot's row inside a transaction that is under way."""
    execute(_SNAPSHOT, (model_id, snapshot.node, snapshot.manifest, snapshot.size))


def _name_parameters(execute: Execute, model_id: int, names: Iterable[str]) -> None:
    insert_rows(
        execute,
        "parameters (model_id, name)",
        [(model_id, name) for name in dict.fromkeys(names)],
    )


def _read_parameters(execute: Execute, model_id: int) -> dict[str, int]:
    named = execute("SELECT name, parameter_id FROM parameters WHERE model_id = ?", (model_id,))
    return dict(named.fetchall())
