"""What is particular to SQLite: connecting, locking, its catalogue and its errors."""

import contextlib
import errno
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import sqlalchemy as sa
from sqlalchemy import event

from weightledger.ledger import permissions
from weightledger.ledger.errors import (
    CorruptLedger,
    InvalidRequest,
    LedgerError,
    StorageBusy,
    StorageError,
    StorageFull,
)
from weightledger.ledger.sql import journal as journals
from weightledger.ledger.sql import torn_copies, triggers
from weightledger.ledger.sql.backend import KEPT_CONNECTIONS, Execute, KeyLists, Kind, Slots
from weightledger.ledger.sql.file_turns import FileLock
from weightledger.ledger.sql.refusals import refusal
from weightledger.ledger.sql.sqlite_driver import driver, name, weakness
from weightledger.ledger.sql.sqlite_integrity import damage as damage
from weightledger.ledger.sql.sqlite_integrity import protect as protect
from weightledger.ledger.sql.sqlite_integrity import rebuild_indexes as rebuild_indexes
from weightledger.ledger.sql.sqlite_integrity import unprotect as unprotect
from weightledger.ledger.sql.wakeups import Wakeups

logger = logging.getLogger(__name__)

BEGIN_READ = "BEGIN"
BEGIN_WRITE = "BEGIN IMMEDIATE"
NOW = "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"
GREATEST = "max"
FOR_UPDATE = ""  # a writer holds the whole database
KEY_AGAIN = (
    "SELECT event_key FROM events INDEXED BY events_idempotency_again"
    " WHERE idempotency_key = ? AND model_id = ?"
)
ERRORS = (driver.Error,)
WRITES_ALONE = False
REDACT = None  # whoever can write the file can do anything to it

_BUSY_S = 10.0
_NOT_TEXT = "Could not decode to UTF-8"  # the driver's own, of a column that holds something else
_PROBE_BYTES = 64 * 1024
_MOST_CONNECTIONS = 64

_PARAMETERS = {
    *("timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements"),
}

# page_size takes effect on a new file only. recursive_triggers fires DELETE triggers on REPLACE.
_PRAGMAS = (
    "PRAGMA page_size = 8192",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA recursive_triggers = ON",
)


def engine(url: sa.URL, *, create: bool, kept: int = KEPT_CONNECTIONS) -> sa.Engine:
    """An engine whose connections leave BEGIN to us; InvalidRequest for a database in memory."""
    file = url.database or ":memory:"
    if ":memory:" in file or url.query.get("mode") == "memory":
        raise InvalidRequest(
            "a SQLite ledger needs a file, such as sqlite:///weights.db: "
            "a database in memory is seen by one connection only",
            param="database_url",
        )
    ignored = sorted(set(url.query) - _PARAMETERS)
    if ignored and not file.startswith("file:"):
        raise InvalidRequest(
            f"the URL of a SQLite file has no parameter {ignored[0]!r}, which would be ignored;"
            " a question mark in a file's name is written %3F",
            param="database_url",
        )
    if not create and not file.startswith("file:") and not Path(file).exists():
        raise StorageError(f"there is no database at {file}")
    _warn_once()
    if not create and not file.startswith("file:"):
        url = _readable(url)
    made = sa.create_engine(
        url,
        module=driver,
        pool_size=kept,
        max_overflow=_MOST_CONNECTIONS - kept,
        pool_timeout=_BUSY_S,
        pool_reset_on_return=None,
        connect_args={"isolation_level": None, "timeout": _BUSY_S, "check_same_thread": False},
    )

    @event.listens_for(made, "do_connect")
    def make_private(*_: object) -> None:
        _make_private(file_of(url))

    @event.listens_for(made, "connect")
    def configure(connection: Any, _record: object) -> None:
        for pragma in (*_PRAGMAS, *journals.pragmas()):
            connection.execute(pragma)

    return made


def _readable(url: sa.URL) -> sa.URL:
    """The same database; as one that nobody changes, where nothing can be written beside it.

    SQLite wants to write files beside a database with a write-ahead log even to read it.
    StorageError when there is a log, which has to be worked in first.
    """
    file = Path(url.database or "").absolute()
    if os.access(file.parent, os.W_OK):
        return url
    log = file.with_name(file.name + "-wal")
    if log.exists() and log.stat().st_size:
        raise StorageError(
            f"{file} was in use when it was copied ({log.name} is not empty), and nothing can be"
            " written beside it: copy both to a folder that can be written to, and read it there"
        )
    query = {"mode": "ro", "immutable": "1", "uri": "true"}
    return url.set(database=file.as_uri(), query=query)


def journal(engine: sa.Engine) -> journals.WriteAheadJournal:
    """What keeps the write-ahead log of this database short, and there."""
    kept = journals.WriteAheadJournal(file_of(engine.url), engine.raw_connection)

    @event.listens_for(engine, "connect")
    def connected(*_: object) -> None:
        kept.connected()

    return kept


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


def file_of(url: sa.URL) -> Path:
    """The database's file; its name may hold what a URL gives a meaning to."""
    name = url.database or ""
    if not name.startswith("file:"):
        return Path(name)
    return Path(unquote(name.removeprefix("file:").partition("?")[0]))


@cache
def _warn_once() -> None:
    weak = weakness()
    if weak is not None:
        logger.warning("%s", weak)


def version(_execute: Execute) -> str:
    """The name and version of the library."""
    return name()


def _make_private(path: Path) -> None:
    """Make a new database's file for its owner only: SQLite gives the files beside it its mode."""
    with contextlib.suppress(OSError):  # SQLite says what is wrong, in its own words
        permissions.make_file(path)
    permissions.warn_if_open(path)


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
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            execute("PRAGMA journal_mode = WAL").fetchone()
        except driver.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > until:
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


def by_standing_alone(_error: BaseException) -> bool:
    """Never: nothing stands alone."""
    return False


def is_lost(_connection: Any) -> bool:
    """Never: a file does not go away."""
    return False


def withdraw(connection: Any) -> bool:
    """Write over what a failed commit left in the journal.

    When syncing fails, the transaction's pages stand there all the same, and whoever recovers the
    journal after a crash takes them for committed. A transaction that changes nothing takes their
    place, and what follows it no longer fits.
    """
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")
    except driver.Error as error:
        logger.error("a commit that failed could not be withdrawn: %s", error)
        return False
    return True


def is_full(error: BaseException, url: sa.URL) -> bool:
    """Whether an error means that no space is left; of a sync SQLite says only that it failed."""
    if _code(error) == driver.SQLITE_FULL:
        return True
    if _code(error) != driver.SQLITE_IOERR:
        return False
    file = file_of(url)
    try:
        with tempfile.TemporaryFile(dir=file.parent) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
        with Path(f"{file}-wal").open("rb") as journal_file:
            os.fsync(journal_file.fileno())
    except OSError as failure:
        return failure.errno in (errno.ENOSPC, errno.EDQUOT)
    return False


def explain(error: BaseException, where: str) -> LedgerError:
    """The ledger error for an error of the driver; `where` names the database."""
    code = _code(error)
    if code == driver.SQLITE_CONSTRAINT:
        return refusal(str(error)) or StorageError(f"{where} refused a row: {error}")
    if code == driver.SQLITE_FULL:
        return StorageFull(f"no space is left for {where}; nothing was recorded")
    if _is_busy(error):
        return StorageBusy(f"{where} stayed locked by another writer for {_BUSY_S:.0f} s")
    if code == driver.SQLITE_CORRUPT or str(error).startswith(_NOT_TEXT):
        return CorruptLedger(f"{where} is damaged: {error}")
    if code == driver.SQLITE_NOTADB:
        return StorageError(f"{where} is not a SQLite database")
    if code == driver.SQLITE_READONLY:
        return StorageError(f"{where} cannot be written to: {error}")
    if code == driver.SQLITE_CANTOPEN:
        return StorageError(f"{where} cannot be opened; its folder must exist and be writable")
    return StorageError(f"{where} failed: {error}; nothing was recorded")


def _code(error: BaseException) -> int:
    """The primary result code, https://sqlite.org/rescode.html."""
    code: int = getattr(error, "sqlite_errorcode", driver.SQLITE_ERROR)
    return code & 0xFF


def _is_busy(error: BaseException) -> bool:
    return _code(error) in (driver.SQLITE_BUSY, driver.SQLITE_LOCKED)
