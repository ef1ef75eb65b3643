"""What a failure of SQLite means: of a commit, and in the ledger's own errors."""

import errno
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from weightledger.ledger.errors import (
    CorruptLedger,
    LedgerError,
    StorageBusy,
    StorageError,
    StorageFull,
)
from weightledger.ledger.sql import sqlite_opening
from weightledger.ledger.sql.refusals import refusal
from weightledger.ledger.sql.sqlite_driver import driver

logger = logging.getLogger(__name__)

_NOT_TEXT = "Could not decode to UTF-8"  # the driver's own, of a column that holds something else
_PROBE_BYTES = 64 * 1024


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
    file = sqlite_opening.file_of(url)
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
    if is_busy(error):
        return StorageBusy(
            f"{where} stayed locked by another writer for {sqlite_opening.BUSY_S:.0f} s"
        )
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


def is_busy(error: BaseException) -> bool:
    """Whether another connection had the file locked."""
    return _code(error) in (driver.SQLITE_BUSY, driver.SQLITE_LOCKED)
