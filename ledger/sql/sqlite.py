"""What is particular to SQLite: its statements, locks and catalogue.

How files are opened is in `sqlite_opening`, what failures mean in `sqlite_failures`.
"""

import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.sql import journal as journals
from weightledger.ledger.sql import sqlite_opening, torn_copies, triggers
from weightledger.ledger.sql.backend import Execute, KeyLists, Kind, Slots
from weightledger.ledger.sql.file_turns import FileLock
from weightledger.ledger.sql.reserve import TO_OPEN, Reserve
from weightledger.ledger.sql.sqlite_driver import driver, name
from weightledger.ledger.sql.sqlite_failures import by_standing_alone as by_standing_alone
from weightledger.ledger.sql.sqlite_failures import explain as explain
from weightledger.ledger.sql.sqlite_failures import is_busy
from weightledger.ledger.sql.sqlite_failures import is_full as is_full
from weightledger.ledger.sql.sqlite_failures import is_lost as is_lost
from weightledger.ledger.sql.sqlite_failures import withdraw as withdraw
from weightledger.ledger.sql.sqlite_integrity import damage as damage
from weightledger.ledger.sql.sqlite_integrity import protect as protect
from weightledger.ledger.sql.sqlite_integrity import rebuild_indexes as rebuild_indexes
from weightledger.ledger.sql.sqlite_integrity import unprotect as unprotect
from weightledger.ledger.sql.sqlite_opening import engine as engine
from weightledger.ledger.sql.sqlite_opening import file_of as file_of
from weightledger.ledger.sql.wakeups import Wakeups

BEGIN_READ = "BEGIN"
BEGIN_WRITE = "BEGIN IMMEDIATE"
NOW = "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"
GREATEST = "max"
FOR_UPDATE = ""  # a writer holds the whole database
SLICES, SLICE = "", "0, p.data"  # whole: it has them in memory
KEY_AGAIN = (
    "SELECT event_key FROM events INDEXED BY events_idempotency_again"
    " WHERE idempotency_key = ? AND model_id = ?"
)
ERRORS = (driver.Error,)
WRITES_ALONE = False
# Rows that are read and worked on together: with their payloads they stay in the processor's cache,
# without which fetching them takes half as long again.
_PAGE = 256
REDACT = None  # whoever can write the file can do anything to it


def journal(engine: sa.Engine) -> journals.WriteAheadJournal:
    """What keeps the write-ahead log of this database short, and there."""
    kept = journals.WriteAheadJournal(file_of(engine.url), engine.raw_connection)

    @event.listens_for(engine, "connect", insert=True)  # before the first pragma, which reads
    def reach(connection: Any, _record: object) -> None:
        if kept.reserve.exists():
            _reach(connection, engine.url, kept.reserve)

    @event.listens_for(engine, "connect")
    def connected(*_: object) -> None:
        kept.connected()

    return kept


def _reach(connection: Any, url: sa.URL, reserve: Reserve) -> None:
    """Have room for the index of the log, where the disk has none; whoever reads first says what
    else is wrong."""
    while True:
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        except driver.Error as error:
            if is_full(error, url) and reserve.let_go(TO_OPEN):
                continue
        return


def turns(engine: sa.Engine, model_id: int) -> FileLock:
    """The lock that writers of a model take in turn."""
    return FileLock(file_of(engine.url), model_id)


def slots(_engine: sa.Engine, _model_id: int, _count: int, _name: str) -> Slots:
    """None: its replicas share one machine."""
    raise InvalidRequest(
        "rolling needs PostgreSQL, whose locks replicas on several machines share; this ledger is"
        " on SQLite",
        param="rolling",
    )


def wakeups(_engine: sa.Engine) -> Wakeups:
    """Commits of this process wake up those who wait in it; others look at the file."""
    return Wakeups(None, None)


def changed(execute: Execute) -> Callable[[], bool]:
    """Whether any other connection has committed to the file: a look into shared memory."""
    known: list[int] = []

    def asked() -> bool:
        (version,) = execute("PRAGMA data_version").fetchone()
        same = known == [version]
        known[:] = [version]
        return not same

    return asked


def version(_execute: Execute) -> str:
    """The name and version of the library."""
    return name()


def place(execute: Execute) -> str:
    """The path of the file, without links on the way."""
    path: str = execute("PRAGMA database_list").fetchone()[2]
    return os.path.realpath(path)


def executor(connection: Any) -> Execute:
    """How to run a statement on a driver connection."""
    run: Execute = connection.execute
    return run


lender = executor


def among(_kind: Kind) -> str:
    """A comparison: is one of the values of one parameter made by `many`."""
    return "IN (SELECT value FROM json_each(?))"


def each(_kind: Kind) -> str:
    """A row source: every value of one parameter made by `many`, as v.value."""
    return "json_each(?) AS v"


def many(values: Sequence[Any]) -> str:
    """Values as the one parameter of `each`."""
    if len(values) == 1 and type(values[0]) is int:  # an update of one parameter
        return f"[{values[0]}]"
    return json.dumps(list(values))


def first_of_each(
    execute: Execute, lists: KeyLists, bounds: tuple[int, int], limit: int, order: str
) -> list[int]:
    """A statement for each list: they cost microseconds here, and there is no LATERAL."""
    one = lists.one("?", order)
    found: list[int] = []
    for value in lists.values:
        rows = execute(one, (value, *lists.given, *bounds, limit))
        found += [key for (key,) in rows.fetchall()]
    return found


def alone(connection: Any, sql: str, params: Sequence[Any]) -> list[tuple[int, ...]]:
    """Never: a statement writes to one table."""
    raise NotImplementedError("SQLite writes to several tables by several statements")


def pages(
    connection: Any, sql: str, bounds: tuple[int, int], most: int
) -> Generator[Sequence[Any], None, None]:
    """See `Backend.pages`."""
    first, last = bounds
    while asked := min(most, _PAGE):
        page = connection.execute(sql, (first, last, asked)).fetchall()
        if page:
            yield page
        if len(page) < asked:
            return
        most -= asked
        first = page[-1][0] + 1


def number(connection: Any, sql: str, params: Sequence[Any]) -> Callable[[], int]:
    """See `Backend.number`."""

    def ask() -> int:
        (value,) = connection.execute(sql, params).fetchone()
        return int(value)

    return ask


def prepare(execute: Execute) -> None:
    """Make a new file's journal a write-ahead log; must run outside of a transaction.

    Unlike a transaction, the pragma fails at once while another process uses the file.
    """
    until = time.monotonic() + sqlite_opening.BUSY_S
    while True:
        try:
            execute("PRAGMA journal_mode = WAL").fetchone()
        except driver.OperationalError as error:
            if not is_busy(error) or time.monotonic() > until:
                raise
        else:
            return
        execute("BEGIN EXCLUSIVE")
        execute("COMMIT")


def making(url: sa.URL) -> AbstractContextManager[None]:
    """Mark a database as one that is being made."""
    return torn_copies.making(file_of(url))


def made(url: sa.URL) -> None:
    """Take away a mark that is left."""
    torn_copies.made(file_of(url))


def torn(url: sa.URL) -> str | None:
    """What is missing beside a database without tables."""
    file = file_of(url)
    return f"{file.name}-wal" if torn_copies.is_torn(file) else None


def lock_schema(execute: Execute) -> None:
    """Nothing to do: BEGIN IMMEDIATE has locked out other writers."""


def table_names(execute: Execute) -> set[str]:
    """Every table of the database; one whose name is no text, by damage, is none of them."""
    rows = execute("SELECT name FROM sqlite_master WHERE type = 'table' AND typeof(name) = 'text'")
    return {name for (name,) in rows if not name.startswith("sqlite_")}


def weaknesses(execute: Execute) -> list[str]:
    """Triggers that are missing, changed, or someone else's on the tables they protect."""
    rows = execute("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger'")
    found = {name: (table, sql) for name, table, sql in rows}
    ours = triggers.sqlite_triggers()
    return [
        f"trigger {name} is missing or was changed"
        for name, sql in ours.items()
        if found.get(name, ("", ""))[1] != sql
    ] + [
        f"trigger {name} on {table} is not the ledger's"
        for name, (table, _) in found.items()
        if name not in ours and table in triggers.PROTECTED
    ]


def stream(connection: Any, sql: str, _rows: int) -> Iterator[Sequence[Any]]:
    """The rows of a query, one by one."""
    yield from connection.execute(sql)


def renumber(_execute: Execute, _counted: Sequence[tuple[str, str]]) -> None:
    """Nothing to do: the largest number counts."""


def is_quiet(_connection: Any) -> bool:
    """Always: a file says nothing by itself."""
    return True
