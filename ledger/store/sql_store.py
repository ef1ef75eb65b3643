"""A ledger's store over SQL, for SQLite and PostgreSQL; the port is `ledger.store.LedgerStore`."""

from weightledger.ledger.access.records import ApiKeys
from weightledger.ledger.blobs import BlobStore
from weightledger.ledger.blobs.location import open_blobs
from weightledger.ledger.blobs.tenants import Tenancy
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.sql import schema
from weightledger.ledger.sql.backend import KEPT_CONNECTIONS
from weightledger.ledger.sql.database import Database
from weightledger.ledger.sql.schema import open_schema
from weightledger.ledger.store import derived
from weightledger.ledger.store.append import Appender, register
from weightledger.ledger.store.attached import Append
from weightledger.ledger.store.sql_events import SqlEvents


class SqlStore:
    """The models of one database; `blobs` are the blobs there or beside it.

    Safe to share between threads; any number of processes may use the same database.
    """

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self.blobs = blobs
        self.keys = ApiKeys(database)
        self.tenancy = Tenancy(database, blobs)
        self._database = database
        self._events: dict[str, SqlEvents] = {}

    @classmethod
    def open(
        cls,
        url: str,
        *,
        upgrade: bool = True,
        guarded: bool = True,
        blob_url: str | None = None,
        connections: int = KEPT_CONNECTIONS,
    ) -> "SqlStore":
        """Open a database by SQLAlchemy URL, making or upgrading its tables.

        `blob_url` is as for `ledger.blobs.location.open_blobs`. Raises SchemaMismatch for a newer
        or foreign database, one that is not append-only (with `guarded=False` it is opened all the
        same, to be looked into), or with `upgrade=False` one without this release's tables;
        InvalidRequest when the ledger has another blob store; StorageError when the database or a
        new blob store cannot be reached.
        """
        database = Database.connect(url, create=upgrade, kept=connections)
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

    def version(self) -> str:
        """The name and version of the database."""
        return self._database.version()

    def give_way(self) -> bool:
        """Let go of room that is kept for a full disk; see `LedgerStore.give_way`."""
        return self._database.give_way()

    def take_back(self) -> None:
        """Keep that room again; see `LedgerStore.take_back`."""
        self._database.take_back()

    def weaknesses(self) -> list[str]:
        """What no longer keeps the log append-only, in words; empty when all is well."""
        with self._database.read() as execute:
            return self._database.backend.weaknesses(execute)

    def damage(self) -> list[str]:
        """What the database's own checks find, and rows that no log accounts for, in words."""
        kind = self._database.kind
        with self._database.read() as execute:
            found = self._database.backend.damage(execute, schema.statements(kind))
            return found + derived.strays(execute)

    def rebuild_indexes(self) -> None:
        """Make every index of the database from its table anew."""
        kind = self._database.kind
        with self._database.write() as execute:
            self._database.backend.rebuild_indexes(execute, schema.statements(kind))

    def models(self) -> list[str]:
        """Names of the registered models, in order of registration."""
        return list(self._ids())

    def model(self, name: str) -> SqlEvents:
        """A registered model's events; NotFound names the models there are."""
        if name not in self._events:
            ids = self._ids()
            if name not in ids:
                known = ", ".join(ids) or "none"
                raise NotFound(f"Model {name!r} not found; registered: {known}")
            self._bind(name, ids[name])
        return self._events[name]

    def register(self, first: Append) -> SqlEvents:
        """Make a model's first event durable; see `LedgerStore.register`."""
        event = first[0]
        if event.seq != 0:
            raise InvalidRequest(f"a model is registered by its event 0, got event {event.seq}")
        model_id = register(self._database, self.blobs, first)
        self.tenancy.settle()
        return self._bind(event.model, model_id)

    def _ids(self) -> dict[str, int]:
        with self._database.read() as execute:
            return dict(execute("SELECT name, model_id FROM models ORDER BY model_id").fetchall())

    def _bind(self, name: str, model_id: int) -> SqlEvents:
        appender = Appender(self._database, self.blobs, self.tenancy, name, model_id)
        return self._events.setdefault(name, SqlEvents(self, self._database, appender))
