"""The port between the store and a database: what SQLite and PostgreSQL do differently.

The modules `ledger.sql.sqlite` and `ledger.sql.postgres` are its implementations. Statements
are written once, with `?` for a value; driver connections are in autocommit mode, so that
transactions begin and end where we say.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import sqlalchemy as sa

from weightledger.ledger.errors import LedgerError
from weightledger.ledger.sql.turns import Lock
from weightledger.ledger.sql.wakeups import Wakeups


class Cursor(Protocol):
    """What is read of a driver's cursor."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Execute(Protocol):
    """Runs a statement on one driver connection."""

    def __call__(self, sql: str, params: Sequence[Any] = (), /) -> Cursor: ...


KEPT_CONNECTIONS = 8
"""Connections that a pool keeps; more are made when they are wanted, and closed afterwards."""

Kind = Literal["bigint", "text"]  # of values that are listed


@dataclass(frozen=True, slots=True)
class KeyLists:
    """Lists of event keys in one index: for each value those of the rows with that value.

    `condition` narrows them all; it begins with AND, names the table `s`, and `given` fills it in.
    """

    table: str
    column: str
    values: Sequence[Any]
    kind: Kind = "bigint"
    condition: str = ""
    given: tuple[Any, ...] = ()

    def one(self, value: str, order: str) -> str:
        """A query for the first keys of the list of `value`, an SQL expression.

        It takes `given`, two bounds and a limit.
        """
        return (
            f"SELECT s.event_key FROM {self.table} s WHERE s.{self.column} = {value}"
            f"{self.condition} AND s.event_key BETWEEN ? AND ? ORDER BY s.event_key {order} LIMIT ?"
        )


class Journal(Protocol):
    """Looks after a database's journal."""

    def writing(self, patience_s: float) -> AbstractContextManager[None]:
        """Around each transaction that writes."""

    def acquire(self, patience_s: float) -> None:
        """Begin such a transaction; StorageBusy if others take long."""

    def release(self) -> None:
        """End it."""

    def require_in_place(self) -> None:
        """Raise StorageError where the database is no longer where it was opened."""

    def committed(self, execute: Execute) -> None:
        """After each commit, outside of a transaction."""

    def full(self, execute: Execute) -> None:
        """After a transaction that found no room, before others write."""

    def give_way(self) -> bool:
        """Let go of room that is kept for a full disk; False when none is left."""

    def take_back(self) -> None:
        """Keep it again."""

    def let_go(self) -> None:
        """Before the connections are closed."""

    def close(self) -> None:
        """Give back what it holds, after they were."""

    def forked(self) -> None:
        """In a fork: let go there of what both processes hold."""


class Slots(Protocol):
    """So many processes at once may hold one; see `ledger.sql.advisory_slots`."""

    def held(self, goes_on: Callable[[], bool]) -> AbstractContextManager[bool]:
        """Hold one in the block; False without, since `goes_on` said no while one waited."""

    def close(self) -> None:
        """Give back what it takes."""


class Backend(Protocol):
    """One kind of database."""

    BEGIN_READ: str  # several statements see one state of the database
    BEGIN_WRITE: str
    NOW: str  # UTC microseconds by the database's clock, an expression
    GREATEST: str  # the function that gives the greatest of its arguments
    FOR_UPDATE: str  # appended to a SELECT, locks its rows in its order
    SLICES: str  # a join by which the bytes p.data of a table come in slices, in no order
    SLICE: str  # where one of them starts, and the slice
    KEY_AGAIN: str  # the event of an idempotency key and a model, by another index than the first
    ERRORS: tuple[type[Exception], ...]  # what the driver raises
    REDACT: str | None  # carries out a redaction by its event's key; None: tables are written to
    WRITES_ALONE: bool  # one statement, by itself a transaction, can write to several tables

    def among(self, kind: Kind) -> str:
        """A comparison: is one of the values of one parameter made by `many`."""

    def each(self, kind: Kind) -> str:
        """A row source: every value of one parameter made by `many`, as v.value."""

    def many(self, values: Sequence[Any]) -> Any:
        """Values as the one parameter of `each`."""

    def first_of_each(
        self,
        execute: Execute,
        lists: "KeyLists",
        bounds: tuple[int, int],
        limit: int,
        order: str,
    ) -> list[int]:
        """Of every list the first `limit` keys within bounds; `order` is ASC or DESC."""

    def engine(self, url: sa.URL, *, create: bool, kept: int = KEPT_CONNECTIONS) -> sa.Engine:
        """The pool, which keeps so many connections; InvalidRequest for a URL that cannot work."""

    def journal(self, engine: sa.Engine) -> "Journal | None":
        """What keeps the database's journal short, where that is ours to do."""

    def turns(self, engine: sa.Engine, model_id: int) -> Lock:
        """The lock that writers of a model take in turn."""

    def slots(self, engine: sa.Engine, model_id: int, count: int, name: str) -> Slots:
        """So many slots of a model, for one who is called `name`; InvalidRequest where there are
        none."""

    def wakeups(self, engine: sa.Engine) -> Wakeups:
        """How those who wait for new events hear of them."""

    def changed(self, execute: Execute) -> Callable[[], bool] | None:
        """What says by one connection whether the database may have changed since it was asked;
        None where nothing says so for less than a look at an index costs."""

    def version(self, execute: Execute) -> str:
        """The name and version of the database."""

    def place(self, execute: Execute) -> str:
        """What tells this database from every other, a copy of it included."""

    def executor(self, connection: Any) -> Execute:
        """How to run a statement on a driver connection."""

    def lender(self, connection: Any) -> Execute:
        """The same, but bytes may be views of the driver's memory, which last as long as they."""

    def alone(self, connection: Any, sql: str, params: Sequence[Any]) -> list[tuple[int, ...]]:
        """Run a statement that is a transaction by itself, where `WRITES_ALONE`.

        Its values are None, int, str, bytes or made by `many` of ints, and the statement casts each
        to its type; it gives one row of whole numbers and truth values.
        """

    def pages(
        self, connection: Any, sql: str, bounds: tuple[int, int], most: int
    ) -> Generator[Sequence[Any], None, None]:
        """The first rows of a query, `most` of them, by pages, in the order of their keys.

        Its parameters are the bounds of the keys and a limit; the key is its first column. Nothing
        else runs over the connection until the iterator has ended or is closed.
        """

    def number(self, connection: Any, sql: str, params: Sequence[Any]) -> Callable[[], int]:
        """What gives the one whole number, not below zero, of a statement that is run again and
        again outside of a transaction; its parameters are whole numbers too."""

    def prepare(self, execute: Execute) -> None:
        """Before the first migration, outside of a transaction."""

    def making(self, url: sa.URL) -> AbstractContextManager[None]:
        """Around `prepare` and the first migration: whoever dies within can go on later."""

    def made(self, url: sa.URL) -> None:
        """The tables are there, whoever died within `making`."""

    def torn(self, url: sa.URL) -> str | None:
        """What a database without tables lacks that had some, in the place it was copied from."""

    def lock_schema(self, execute: Execute) -> None:
        """Keep other processes from migrating until the transaction ends."""

    def table_names(self, execute: Execute) -> set[str]:
        """Every table of the database."""

    def weaknesses(self, execute: Execute) -> list[str]:
        """What no longer keeps the log append-only, in words; see `ledger.sql.triggers`."""

    def stream(self, connection: Any, sql: str, rows: int) -> Iterator[Sequence[Any]]:
        """The rows of a query in a transaction, of which `rows` are held at a time."""

    def renumber(self, execute: Execute, counted: Sequence[tuple[str, str]]) -> None:
        """Let columns that count by themselves, given with their tables, go on after their rows."""

    def is_quiet(self, connection: Any) -> bool:
        """Whether nothing came in over a connection since it was last used, such as its end."""

    def by_standing_alone(self, error: BaseException) -> bool:
        """Whether a statement failed, writing nothing, for being sent by itself: a transaction will
        do."""

    def is_lost(self, connection: Any) -> bool:
        """Whether a connection that failed is good for nothing any more."""

    def withdraw(self, connection: Any) -> bool:
        """After a COMMIT that failed: whether it is certain now that nothing of it will show."""

    def is_full(self, error: BaseException, url: sa.URL) -> bool:
        """Whether an error of the driver that does not say so means that no space is left."""

    def damage(self, execute: Execute, statements: Sequence[str]) -> list[str]:
        """What the database's own checks find, in words; `statements` made its tables."""

    def rebuild_indexes(self, execute: Execute, statements: Sequence[str]) -> None:
        """Make every index from its table anew."""

    def unprotect(self, execute: Execute, tables: Sequence[str]) -> None:
        """Let rows of these tables be changed, in this transaction, until `protect`."""

    def protect(self, execute: Execute, tables: Sequence[str]) -> None:
        """Refuse to change rows of these tables again."""

    def explain(self, error: BaseException, where: str) -> LedgerError:
        """The ledger error for an error of the driver."""
