"""Appending: one event with all that belongs to it, in one transaction of few statements."""

from collections.abc import Iterable, Sequence

from weightledger.ledger.blobs.sql import store_blobs
from weightledger.ledger.errors import InvalidRequest, SeqTaken, StorageError
from weightledger.ledger.events.event import (
    INLINE_BYTES,
    PINS,
    RETIRED,
    UPDATED,
    VERSION_PINNED,
    VERSIONS,
)
from weightledger.ledger.sql.backend import Execute
from weightledger.ledger.sql.bulk import insert_rows
from weightledger.ledger.sql.database import Database
from weightledger.ledger.store import Append, Snapshot, rows
from weightledger.ledger.store.rows import key_of

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


class Appender:
    """The writing half of the store; remembers the ids of models and parameters, once durable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._models: dict[str, int] = {}
        self._parameters: dict[int, dict[str, int]] = {}

    def append(self, items: Sequence[Append]) -> None:
        """See `EventStore.append`."""
        for item in items:
            _check_inline(item)
        with self._database.write() as execute:
            known = [self._append(execute, item) for item in items]
        for name, model_id, fresh in known:
            self._models[name] = model_id
            if fresh:
                self._parameters[model_id] = self._parameters.get(model_id, {}) | fresh

    def _append(self, execute: Execute, item: Append) -> tuple[str, int, dict[str, int]]:
        """Write one event; gives its model's name and id and what is now known of parameters.

        The event's row comes first, so who lost the race writes nothing else.
        """
        event = item.event
        fresh: dict[str, int] = {}
        model_id = self._place(execute, item)
        key = key_of(model_id, event.seq)
        inserted = execute(rows.INSERT, (*rows.to_row(model_id, event), item.payload))
        if inserted.rowcount != 1:  # a rule or a trigger of someone else's
            raise StorageError(
                f"{self._database.name} took event {event.seq} without storing it;"
                " nothing was recorded"
            )
        if event.seq == 0:
            _name_parameters(execute, model_id, item.parameters)
        elif event.kind == UPDATED and item.parameters:
            ids, fresh = self._parameter_ids(execute, model_id, item.parameters)
            self._touch(execute, ids, key, item.annotation.actor)
        if item.annotation:
            note = item.annotation
            texts = (note.actor, note.reason, note.metadata)
            execute(_ANNOTATE, (key, event.kind, *texts, note.salt))
        if event.series == VERSIONS:
            execute(_LIST, (model_id, event.number, key, event.body["names"]["node"]))
        elif event.series == RETIRED:
            execute(_UNLIST, (model_id, event.number))
        elif event.series == PINS:
            pinned = int(event.kind == VERSION_PINNED)
            execute(_PIN, (pinned, model_id, event.body["number"]))
        if item.blobs:
            store_blobs(execute, item.blobs)
        if item.snapshot is not None:
            remember_snapshot(execute, model_id, item.snapshot)
        for node in item.dropped_snapshots:
            execute(_FORGET, (model_id, node))
        return event.model, model_id, fresh

    def model_id(self, execute: Execute, name: str) -> int | None:
        """The id of a registered model."""
        if name not in self._models:
            row = execute("SELECT model_id FROM models WHERE name = ?", (name,)).fetchone()
            if row is None:
                return None
            self._models[name] = row[0]
        return self._models[name]

    def _place(self, execute: Execute, item: Append) -> int:
        """The id of the event's model, which its first event registers."""
        name = item.event.model
        if item.event.seq == 0:
            row = execute("INSERT INTO models (name) VALUES (?) RETURNING model_id", (name,))
            (made,) = row.fetchone()
            return int(made)
        model_id = self.model_id(execute, name)
        if model_id is None:
            raise SeqTaken(f"model {name!r} has no first event yet")
        return model_id

    def _touch(self, execute: Execute, ids: Sequence[int], key: int, actor: str | None) -> None:
        """Count an update of each parameter; whoever appended the event before has committed."""
        backend = self._database.backend
        execute(
            "INSERT INTO touches (parameter_id, event_key, number, actor)"
            " SELECT v.value, ?, 1 + coalesce((SELECT t.number FROM touches t"
            " WHERE t.parameter_id = v.value ORDER BY t.event_key DESC LIMIT 1), 0), ?"
            f" FROM {backend.each('bigint')}",
            (key, actor, backend.many(ids)),
        )

    def _parameter_ids(
        self, execute: Execute, model_id: int, names: Sequence[str]
    ) -> tuple[list[int], dict[str, int]]:
        """Ids of parameters, and those that are to be remembered when the event is durable."""
        known = self._parameters.get(model_id, {})
        fresh: dict[str, int] = {}
        if any(name not in known for name in names):
            known = fresh = _read_parameters(execute, model_id)
            unnamed = [name for name in dict.fromkeys(names) if name not in fresh]
            if unnamed:
                _name_parameters(execute, model_id, unnamed)
                known = fresh = _read_parameters(execute, model_id)
        return [known[name] for name in dict.fromkeys(names)], fresh


def _check_inline(item: Append) -> None:
    size = item.event.payload_size
    if item.payload is not None and not len(item.payload) == size <= INLINE_BYTES:
        raise InvalidRequest(
            f"an inline payload has {size} bytes by its header and at most {INLINE_BYTES}, "
            f"got {len(item.payload)}"
        )


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
    found = execute("SELECT name, parameter_id FROM parameters WHERE model_id = ?", (model_id,))
    return dict(found.fetchall())
