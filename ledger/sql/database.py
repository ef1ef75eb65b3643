"""One database: the only place that connects, opens a transaction and reads a driver's errors."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from weightledger.ledger import forks, interrupts
from weightledger.ledger.errors import (
    CorruptLedger,
    InvalidRequest,
    LedgerError,
    StorageBusy,
    StorageError,
    StorageFull,
)
from weightledger.ledger.secrets import mask, secrets_of
from weightledger.ledger.sql.backend import KEPT_CONNECTIONS, Backend, Execute, Slots
from weightledger.ledger.sql.turns import Lock, Statement, Turnstile
from weightledger.ledger.sql.wakeups import Wakeups
from weightledger.ledger.sql.writing import Statements, WritingConnections, roll_back

# A backend, with its driver, is imported when a URL of its kind is opened.
_BACKENDS = {
    "sqlite": "weightledger.ledger.sql.sqlite",
    "postgresql": "weightledger.ledger.sql.postgres",
}
_WRITER_WAIT_S = 10.0


class Database:
    """A pool of connections to SQLite or PostgreSQL; safe to share between threads.

    Statements go to the driver's connection: a small event costs less than half as much as
    through SQLAlchemy's own execution.
    """

    def __init__(self, engine: sa.Engine, backend: Backend) -> None:
        self.backend = backend
        self.url = engine.url.render_as_string(hide_password=False)
        self.name = mask(self.url)
        self._secrets = secrets_of(self.url)
        self._engine = engine
        self._journal = backend.journal(engine)
        self._turnstiles: dict[int, Turnstile] = {}
        self.errors: tuple[type[Exception], ...] = (*backend.ERRORS, SQLAlchemyError)
        self._closed = self._left = False
        self._writers = WritingConnections(self, engine, self._journal)
        self.wakeups: Wakeups = backend.wakeups(engine)
        forks.tell(self)

    @classmethod
    def connect(cls, url: str, *, create: bool = True, kept: int = KEPT_CONNECTIONS) -> "Database":
        """A database by SQLAlchemy URL; connects at first use.

        Raises InvalidRequest for a URL that is none or names another kind of database. With
        `create=False` a SQLite file has to exist. `kept` connections stay open once made.
        """
        parsed = parse_url(url)
        backend: Any = import_module(_BACKENDS[parsed.get_backend_name()])
        try:
            return cls(backend.engine(parsed, create=create, kept=kept), backend)
        except (ArgumentError, ImportError, TypeError, ValueError) as error:
            if isinstance(error, LedgerError):
                raise
            raise InvalidRequest(
                f"the database URL {mask(url)} cannot be used: {mask(str(error), secrets_of(url))}",
                param="database_url",
            ) from None

    def close(self) -> None:
        """Give back every connection; further use is a StorageError."""
        self._closed = True
        if self._left:
            return
        self.wakeups.close()
        for turnstile in self._turnstiles.values():
            turnstile.close()
        self._writers.close()
        if self._journal is not None:
            self._journal.let_go()
        self._engine.dispose()
        if self._journal is not None:
            self._journal.close()

    def forked(self) -> None:
        """In a fork: its connections are the other process's, its locks are let go here."""
        self._left = True
        for turnstile in self._turnstiles.values():
            turnstile.forked()
        if self._journal is not None:
            self._journal.forked()

    @contextmanager
    def read(self, *, lent: bool = False) -> Iterator[Execute]:
        """A transaction that sees one state of the database and changes nothing.

        Bytes that are `lent` are as of `Backend.lender`.
        """
        with self._connection() as connection:
            execute = (self.backend.lender if lent else self.backend.executor)(connection)
            execute(self.backend.BEGIN_READ)
            yield execute
            execute("COMMIT")

    @contextmanager
    def snapshot(self) -> Iterator[Callable[[str, int], Iterator[Sequence[Any]]]]:
        """One state of the database: gives what streams a query's rows, so many at a time."""
        with self._connection() as connection:
            execute = self.backend.executor(connection)
            execute(self.backend.BEGIN_READ)
            yield lambda sql, rows: self.backend.stream(connection, sql, rows)
            execute("COMMIT")

    @contextmanager
    def look(self, *, lent: bool = False) -> Iterator[Execute]:
        """For statements that each see one state of the database by themselves: no transaction.

        Bytes that are `lent` are as of `Backend.lender`.
        """
        with self._connection() as connection:
            yield (self.backend.lender if lent else self.backend.executor)(connection)

    def look_ahead(self) -> AbstractContextManager[Statements]:
        """`look` for who may be about to write; see `WritingConnections.look`."""
        return self._writers.look() or self._statements()

    @contextmanager
    def _statements(self) -> Iterator[Statements]:
        with self._connection() as connection:
            yield Statements(self.backend, connection)

    def write(self) -> AbstractContextManager[Execute]:
        """A transaction that is durable when the block ends, and leaves nothing if it raises."""
        return self._writers.transaction()

    def write_alone(self, sql: str, params: Sequence[Any]) -> list[tuple[int, ...]] | None:
        """One statement that is durable when this returns; see `WritingConnections.alone`."""
        return self._writers.alone(sql, params)

    def write_ending(
        self, lock: Lock, statements: Sequence[Statement]
    ) -> list[tuple[int, ...]] | None:
        """The last statements of a turn, by its lock; see `WritingConnections.ending`."""
        return self._writers.ending(lock, statements)

    def turnstile(self, model_id: int, model: str) -> Turnstile:
        """Where writers of a model, in whatever process, wait for their turn."""
        lock = self.backend.turns(self._engine, model_id)
        return self._turnstiles.setdefault(model_id, Turnstile(lock, model))

    def slots(self, model_id: int, count: int, name: str) -> Slots:
        """See `Backend.slots`."""
        return self.backend.slots(self._engine, model_id, count, name)

    @contextmanager
    def change_schema(self) -> Iterator[tuple[sa.Connection, Execute]]:
        """A write transaction for migrations, one process at a time."""
        with (
            self._writing(),
            self._explained(),
            self._engine.connect() as connection,
            connection.begin(),
        ):
            execute = self.backend.executor(connection.connection.driver_connection)
            execute(self.backend.BEGIN_WRITE)
            self.backend.lock_schema(execute)
            yield connection, execute

    @contextmanager
    def session(self) -> Iterator[Execute]:
        """A connection for as long as the block runs, outside of any transaction."""
        with self._connection() as connection:
            yield self.backend.executor(connection)

    @contextmanager
    def looking(
        self, sql: str, params: Sequence[int]
    ) -> Iterator[tuple[Callable[[], int], Callable[[], bool] | None]]:
        """The same, for what gives a statement's one number again and again, and what says for less
        whether there is any use in that; see `Backend.number` and `Backend.changed`."""
        if self._journal is not None:
            self._journal.require_in_place()  # nobody writes to a file that has lost its name
        with self._connection() as connection:
            changed = self.backend.changed(self.backend.executor(connection))
            yield self.backend.number(connection, sql, params), changed

    def prepare(self) -> None:
        """What has to be done once and outside of a transaction before tables are made."""
        with self._writing(), self._connection() as connection:
            self.backend.prepare(self.backend.executor(connection))

    @contextmanager
    def making(self) -> Iterator[None]:
        """Around the first migration; see `Backend.making`."""
        with self._explained(), self.backend.making(self._engine.url):
            yield

    def made(self) -> None:
        """The tables are there."""
        with self._explained():
            self.backend.made(self._engine.url)

    def torn(self) -> str | None:
        """What a database without tables lacks, if it looks like part of a copy."""
        return self.backend.torn(self._engine.url)

    @property
    def kind(self) -> str:
        """The kind of database, "sqlite" or "postgresql"."""
        return self._engine.url.get_backend_name()

    def version(self) -> str:
        """The name and version of what keeps the database, such as "SQLite 3.53.4"."""
        with self.read() as execute:
            return self.backend.version(execute)

    def _writing(self) -> AbstractContextManager[None]:
        return self._journal.writing(_WRITER_WAIT_S) if self._journal else nullcontext()

    def is_full(self, error: Exception) -> bool:
        """Whether an error of the driver means that no space is left."""
        return self.backend.is_full(getattr(error, "orig", None) or error, self._engine.url)

    def give_way(self) -> bool:
        """Let go of room that is kept for a full disk; False when none is left."""
        return self._journal is not None and self._journal.give_way()

    def take_back(self) -> None:
        """Keep it again, as far as there is room."""
        if self._journal is not None:
            self._journal.take_back()

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        self.require_open()
        pooled: sa.PoolProxiedConnection | None = None
        whole = False
        with self._explained():
            try:
                with interrupts.held:
                    pooled = self._engine.raw_connection()
                yield pooled.driver_connection
                whole = True
            finally:
                with interrupts.held:
                    if pooled is not None:
                        if not whole:
                            roll_back(pooled, self.errors)
                        pooled.close()

    def require_open(self) -> None:
        """Raise StorageError once it is closed, and in a fork of the process that opened it."""
        if self._left:
            raise forks.refused(self.name)
        if self._closed:
            raise StorageError(f"{self.name} was closed")

    def _explained(self) -> "_Explained":
        return _Explained(self)

    def translate(self, error: BaseException) -> None:
        """Raise the ledger's error for one of the driver, the pool or of text."""
        if isinstance(error, PoolTimeout):
            raise StorageBusy(f"every connection to {self.name} is in use") from error
        if isinstance(error, self.errors):
            raise self.explain(error) from error
        if isinstance(error, UnicodeEncodeError):
            text = f"text that is not Unicode cannot be stored: {error}"
            raise InvalidRequest(text) from None
        if isinstance(error, UnicodeDecodeError):  # of a name in the schema, or of what it says
            raise CorruptLedger(f"{self.name} is damaged: {error}") from error

    def explain(self, error: Exception) -> LedgerError:
        """What an error of the driver means, without the secrets of the URL."""
        original = getattr(error, "orig", None) or error
        explained = self.backend.explain(original, self.name)
        if self.is_full(error):
            explained = StorageFull(f"no space is left for {self.name}; nothing was recorded")
        explained.args = tuple(mask(str(arg), self._secrets) for arg in explained.args)
        return explained


class _Explained:
    """In its block an error of the driver, the pool or of text becomes the ledger's."""

    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            self._database.translate(error)


def parse_url(url: str) -> sa.URL:
    """A database URL, taken apart; InvalidRequest for what is none or of another database."""
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):  # a port that is no number is a ValueError
        raise InvalidRequest(
            "the database is given as a URL, sqlite:///PATH or postgresql://USER@HOST:PORT/NAME,"
            f" not {mask(url)}",
            param="database_url",
        ) from None
    kind = parsed.get_backend_name()
    if kind not in _BACKENDS:
        raise InvalidRequest(
            f"databases are sqlite:///… or postgresql://…, not {kind!r}", param="database_url"
        )
    return parsed
