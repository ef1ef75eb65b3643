"""Opening SQLite files: what a URL may say, how connections are set up, who may read the file."""

import contextlib
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import ConnectionPoolEntry

from weightledger.ledger import permissions
from weightledger.ledger.errors import InvalidRequest, StorageError
from weightledger.ledger.sql import journal as journals
from weightledger.ledger.sql.backend import KEPT_CONNECTIONS
from weightledger.ledger.sql.sqlite_driver import driver, weakness

logger = logging.getLogger(__name__)

BUSY_S = 10.0
"""How long another writer is waited for."""

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
    if not file.startswith("file:"):
        url = url.set(database=str(file_of(url)))
        if not create:
            url = _readable(url)
    made = sa.create_engine(
        url,
        module=driver,
        pool_size=kept,
        max_overflow=_MOST_CONNECTIONS - kept,
        pool_timeout=BUSY_S,
        pool_reset_on_return=None,
        connect_args={"isolation_level": None, "timeout": BUSY_S, "check_same_thread": False},
    )

    @event.listens_for(made, "do_connect")
    def make_private(*_: object) -> None:
        _make_private(file_of(url))

    @event.listens_for(made, "connect")
    def configure(connection: Any, _record: object) -> None:
        for pragma in (*_PRAGMAS, *journals.pragmas()):
            connection.execute(pragma)

    @event.listens_for(made, "checkin")
    def give_up_what_was_left(connection: Any, record: ConnectionPoolEntry) -> None:
        """One that comes back in a transaction, as from an interruption, would keep its locks."""
        if connection is not None and connection.in_transaction:
            record.invalidate()

    return made


def _readable(url: sa.URL) -> sa.URL:
    """The same database; as one that nobody changes, where nothing can be written beside it.

    SQLite wants to write files beside a database with a write-ahead log even to read it.
    StorageError when there is a log, which has to be worked in first.
    """
    file = file_of(url)
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


def file_of(url: sa.URL) -> Path:
    """The database's file; its name may hold what a URL gives a meaning to.

    It is the one that a link leads to, beside which SQLite has its journal, and stays the same when
    the process changes its folder.
    """
    name = url.database or ""
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:").partition("?")[0])
    path = Path(name).absolute()
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@cache
def _warn_once() -> None:
    weak = weakness()
    if weak is not None:
        logger.warning("%s", weak)


def _make_private(path: Path) -> None:
    """Make a new database's file for its owner only: SQLite gives the files beside it its mode."""
    with contextlib.suppress(OSError):  # SQLite says what is wrong, in its own words
        permissions.make_file(path)
    permissions.warn_if_open(path)
