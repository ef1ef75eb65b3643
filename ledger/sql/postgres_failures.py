"""What a failure of PostgreSQL means: of a commit, of a connection, and in the ledger's errors."""

import select
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import errors

from weightledger.ledger.errors import (
    CorruptLedger,
    InvalidRequest,
    LedgerError,
    StorageBusy,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from weightledger.ledger.sql.refusals import refusal

_BUSY = (
    errors.DeadlockDetected,
    errors.LockNotAvailable,
    errors.SerializationFailure,
    errors.QueryCanceled,
    errors.TooManyConnections,
)
ELSEWHERE = (errors.InvalidSqlStatementName, errors.DuplicatePreparedStatement)
"""A pooler gave us a connection to the server that has other statements prepared."""

BY_STANDING_ALONE = (errors.SerializationFailure, *ELSEWHERE)
_CORRUPT = (errors.DataCorrupted, errors.IndexCorrupted)


def withdraw(connection: Any) -> bool:
    """A server that still answers has undone what it did not commit."""
    return not connection.broken


def is_quiet(connection: Any) -> bool:
    """Whether the server has said nothing since it was last asked.

    It says something unasked when it goes: a statement that has to be sent once only is not sent.
    """
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)


def by_standing_alone(error: BaseException) -> bool:
    """A database may be serializable by default, which our own transactions never are, and a
    pooler may have given us a connection of the server's that has other statements prepared."""
    return isinstance(error, BY_STANDING_ALONE)


def is_lost(connection: Any) -> bool:
    """Whether the server has gone, or has closed the connection."""
    return bool(connection.closed)


def is_full(_error: BaseException, _url: sa.URL) -> bool:
    """Never: the server says so by its own code."""
    return False


def explain(error: BaseException, where: str) -> LedgerError:
    """The ledger error for an error of the driver; `where` names the database."""
    text = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    text = text or " ".join(str(error).split())  # libpq's advice has lines of its own
    if isinstance(error, errors.UniqueViolation | errors.RaiseException):
        known = refusal(error.diag.constraint_name or error.diag.message_primary or "")
        return known or StorageError(f"{where} refused a row: {text}")
    if isinstance(error, errors.DiskFull):
        return StorageFull(f"no space is left for {where}; nothing was recorded")
    if isinstance(error, _BUSY):
        return StorageBusy(f"{where} is busy: {text}")
    if isinstance(error, _CORRUPT):
        return CorruptLedger(f"{where} is damaged: {text}")
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return StorageError(f"{where} cannot be written to: {text}")
    if isinstance(error, errors.InsufficientPrivilege):
        return StorageError(
            f"{where}: {text}. `weightledger db role` prints the rights that a server needs;"
            " `weightledger db upgrade` is for the owner of the tables"
        )
    if isinstance(error, psycopg.DataError):
        return InvalidRequest(f"a value cannot be stored: {text}")
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        return StorageUnavailable(f"{where} cannot be reached: {text}")
    return StorageError(f"{where} failed: {text}")
