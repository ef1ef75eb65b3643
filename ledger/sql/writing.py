"""Writing to one database: connections kept for it, transactions, and what became of a commit."""

import logging
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Any, Protocol

import sqlalchemy as sa

from weightledger.ledger import interrupts
from weightledger.ledger.errors import FullOutcomeUnknown, LedgerError, OutcomeUnknown
from weightledger.ledger.sql.backend import Backend, Cursor, Execute, Journal
from weightledger.ledger.sql.turns import Lock, Statement

logger = logging.getLogger(__name__)

_WAIT_S = 10.0

Opened = tuple[sa.PoolProxiedConnection, Any]
"""A connection of the pool, and the driver's own: the pool asks four others for it each time."""


class Home(Protocol):
    """The database that is written to."""

    backend: Backend
    name: str
    errors: tuple[type[Exception], ...]

    def require_open(self) -> None:
        """Raise StorageError once it is closed."""

    def is_full(self, error: Exception) -> bool:
        """Whether an error of the driver means that no space is left."""

    def translate(self, error: BaseException) -> None:
        """Raise the ledger's error for one of the driver, the pool or of text."""


class WritingConnections:
    """Connections that write, and are kept for the next write; safe to share between threads.

    Taking one from the pool and giving it back costs a small update a tenth of its time, and on
    PostgreSQL a round trip to try it.
    """

    def __init__(self, home: Home, engine: sa.Engine, journal: Journal | None) -> None:
        self.home = home
        self.journal = journal
        self._engine = engine
        self._kept: list[Opened] = []
        self._closed = False

    def close(self) -> None:
        """Give back what is kept, and keep no more."""
        self._closed = True
        while self._kept:
            self._kept.pop()[0].close()

    def transaction(self) -> "Transaction":
        """A transaction that is durable when its block ends, and leaves nothing if it raises."""
        return Transaction(self)

    def alone(self, sql: str, params: Sequence[Any]) -> list[tuple[int, ...]] | None:
        """One statement that is durable when this returns; gives its rows.

        Where `Backend.WRITES_ALONE`. None, and nothing was written, when it needs a transaction of
        our own: no connection has written before, the last one may have gone meanwhile (once sent,
        nobody could say what became of the statement), or the database asks for an isolation.
        """
        home = self.home
        home.require_open()
        opened = self._taken()
        if opened is None:
            return None
        pooled, connection = opened
        if not home.backend.is_quiet(connection):
            self.keep(opened)
            return None
        try:
            rows = home.backend.alone(connection, sql, params)
        except BaseException as error:
            self.drop(pooled)
            if isinstance(error, home.backend.ERRORS):
                if home.backend.by_standing_alone(error):
                    return None
                unknown = self.withdrawn(connection, error)
                if unknown is not None:
                    raise unknown from error
            home.translate(error)
            raise
        self.keep(opened)
        return rows

    def ending(self, lock: Lock, statements: Sequence[Statement]) -> list[tuple[int, ...]] | None:
        """The same of several by the connection that holds a turn, which ends with them."""
        home = self.home
        home.require_open()
        opened = lock.connection
        if opened is not None and not home.backend.is_quiet(opened):
            lock.close()
            return None
        try:
            return lock.write(statements)
        except BaseException as error:
            if isinstance(error, home.backend.ERRORS):
                if home.backend.by_standing_alone(error):
                    return None
                unknown = self.withdrawn(lock.connection, error)
                if unknown is not None:
                    raise unknown from error
            home.translate(error)
            raise

    def look(self) -> "Look | None":
        """Statements by themselves over a connection that is kept, for who is about to write with
        it: what they read is at hand there then. None where none is kept, or one may be lost."""
        if self.journal is None:
            return None
        opened = self._taken()
        return None if opened is None else Look(self, opened)

    def begin(self) -> tuple[Opened, Execute]:
        """A kept connection, or else a new one, after BEGIN."""
        backend = self.home.backend
        while (kept := self._taken()) is not None:
            try:
                return self._after_begin(kept)
            except self.home.errors:
                # Nothing was written on it: where the server went meanwhile, another one will do.
                if not backend.is_lost(kept[1]):
                    raise
        pooled = self._engine.raw_connection()
        return self._after_begin((pooled, pooled.driver_connection))

    def commit(self, connection: Any, execute: Execute) -> None:
        """Make it durable; OutcomeUnknown when nobody can say whether it is."""
        try:
            execute("COMMIT")
        except self.home.backend.ERRORS as error:
            unknown = self.withdrawn(connection, error)
            if unknown is not None:
                raise unknown from error
            raise
        if self.journal is not None:
            try:  # the commit stands whatever happens here
                self.journal.committed(execute)
            except self.home.errors as error:
                logger.error("the journal of %s could not be shortened: %s", self.home.name, error)

    def keep(self, opened: Opened) -> None:
        """Have a connection for the next write."""
        if self._closed:
            opened[0].close()
        else:
            self._kept.append(opened)

    def drop(self, pooled: sa.PoolProxiedConnection) -> None:
        """Undo what a connection has not committed, and give it back."""
        roll_back(pooled, self.home.errors)
        pooled.close()

    def drop_failed(self, opened: Opened, error: BaseException) -> None:
        """The same of a transaction that failed; where no room was left, the journal makes some."""
        pooled, connection = opened
        roll_back(pooled, self.home.errors)
        if isinstance(error, self.home.errors) and self.home.is_full(error):
            self._shorten(connection)
        pooled.close()

    def withdrawn(self, connection: Any, error: Exception) -> LedgerError | None:
        """After a COMMIT that failed: None when nothing of it stays, else what to raise."""
        home = self.home
        full = home.is_full(error)
        if home.backend.withdraw(connection):
            return None
        if full and self.journal is not None and self._makes_room(self.journal, connection):
            return None
        cause = "no space was left for" if full else "the connection or the disk failed under"
        return (FullOutcomeUnknown if full else OutcomeUnknown)(
            f"{cause} {home.name} while committing: whether the change was recorded is not known."
            " Send it again with the same idempotency key: then it is recorded once, whichever it"
            " was. Without a key, look whether it is there first"
        )

    def _makes_room(self, journal: Journal, connection: Any) -> bool:
        """Withdraw what a full disk left no room to withdraw; whether that was possible."""
        withdraw = self.home.backend.withdraw
        self._shorten(connection)
        if withdraw(connection):
            return True
        if not journal.give_way():
            return False
        withdrawn = withdraw(connection)
        self._shorten(connection)
        journal.take_back()
        return withdrawn

    def _shorten(self, connection: Any) -> None:
        """Have the journal make room, if there is one, on a full disk."""
        if self.journal is not None:
            try:
                self.journal.full(self.home.backend.executor(connection))
            except self.home.errors as error:
                logger.warning("the journal of %s cannot make room: %s", self.home.name, error)

    def _taken(self) -> Opened | None:
        try:
            return self._kept.pop()
        except IndexError:
            return None

    def _after_begin(self, opened: Opened) -> tuple[Opened, Execute]:
        pooled, connection = opened
        execute = self.home.backend.executor(connection)
        try:
            execute(self.home.backend.BEGIN_WRITE)
        except BaseException:
            self.drop(pooled)
            raise
        return opened, execute


class Transaction:
    """A write transaction; its block gets what runs statements, and nothing interrupts it.

    A class, because a generator costs each write more than what it does.
    """

    __slots__ = ("_connections", "_execute", "_opened")

    def __init__(self, connections: WritingConnections) -> None:
        self._connections = connections

    def __enter__(self) -> Execute:
        interrupts.held.__enter__()
        try:
            return self._begun()
        except BaseException as error:
            interrupts.held.__exit__(type(error), error, None)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._end(error)
        finally:
            interrupts.held.__exit__(kind, error, trace)

    def _begun(self) -> Execute:
        connections = self._connections
        connections.home.require_open()  # in a fork the lock may be a thread's that is not there
        if connections.journal is not None:
            connections.journal.acquire(_WAIT_S)
        try:
            connections.home.require_open()
            self._opened, self._execute = connections.begin()
        except BaseException as error:
            self._release()
            connections.home.translate(error)
            raise
        return self._execute

    def _end(self, error: BaseException | None) -> None:
        connections, opened = self._connections, self._opened
        try:
            if error is not None:
                connections.drop_failed(opened, error)
                connections.home.translate(error)
                return
            try:
                connections.commit(opened[1], self._execute)
            except BaseException as failure:
                connections.drop_failed(opened, failure)
                connections.home.translate(failure)
                raise
            connections.keep(opened)
        finally:
            self._release()

    def _release(self) -> None:
        if self._connections.journal is not None:
            self._connections.journal.release()


class Statements:
    """What runs over one connection outside of a transaction."""

    __slots__ = ("_backend", "_connection")

    def __init__(self, backend: Backend, connection: Any) -> None:
        self._backend = backend
        self._connection = connection

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Cursor:
        """One statement."""
        return self._backend.executor(self._connection)(sql, params)

    def pages(
        self, sql: str, bounds: tuple[int, int], most: int
    ) -> Generator[Sequence[Any], None, None]:
        """See `Backend.pages`."""
        return self._backend.pages(self._connection, sql, bounds, most)


class Look:
    """What a kept connection runs in its block."""

    __slots__ = ("_connections", "_opened")

    def __init__(self, connections: WritingConnections, opened: Opened) -> None:
        self._connections = connections
        self._opened = opened

    def __enter__(self) -> Statements:
        home = self._connections.home
        try:
            home.require_open()
        except BaseException:
            self._connections.keep(self._opened)
            raise
        return Statements(home.backend, self._opened[1])

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        connections = self._connections
        if error is None:
            connections.keep(self._opened)
        else:
            connections.drop(self._opened[0])
            connections.home.translate(error)


def roll_back(pooled: sa.PoolProxiedConnection, errors: tuple[type[Exception], ...]) -> None:
    """Undo what a connection has not committed; one that cannot is given up."""
    try:
        pooled.rollback()
    except errors:
        pooled.invalidate()
