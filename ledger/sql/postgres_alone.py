"""One statement by itself on PostgreSQL: prepared once a connection, sent and answered in one call.

Going through the driver's cursor takes as long as all the rest that a small update does in Python
while it is written; this is its own interface to libpq, which waits without Python's lock.
"""

import itertools
import struct
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg import errors, pq

from weightledger.ledger.sql.postgres_waiting import failure

_BINARY = 1
_NUMBER = struct.Struct(">q")
_BIGINT = 20
# Of an array of one dimension: how many of those, no nulls, the type, the length, the first index.
_ARRAY = struct.Struct(">iiIii")
_SIZE = struct.pack(">i", _NUMBER.size)

_numbers = itertools.count()
# By connection the names of its prepared statements.
_prepared: WeakKeyDictionary[Any, dict[str, bytes]] = WeakKeyDictionary()


def alone(
    connection: psycopg.Connection[Any], sql: str, params: Sequence[Any]
) -> list[tuple[int, ...]]:
    """See `Backend.alone`."""
    return repeated(connection, sql, params)()


def repeated(
    connection: psycopg.Connection[Any], sql: str, params: Sequence[Any]
) -> Callable[[], list[tuple[int, ...]]]:
    """The same, to be asked again and again: all but sending is done once."""
    name = prepared(connection, sql)
    values = binary(params)
    formats = [_BINARY] * len(values)
    execute = connection.pgconn.exec_prepared

    def ask() -> list[tuple[int, ...]]:
        answer = execute(name, values, formats, _BINARY)
        if answer.status != pq.ExecStatus.TUPLES_OK:
            try:
                _checked(connection, answer)
            except errors.InvalidSqlStatementName:  # a pooler gave us another server's connection
                forget(connection, sql)
                raise
        columns = range(answer.nfields)
        return whole_numbers(
            [[answer.get_value(row, at) for at in columns] for row in range(answer.ntuples)]
        )

    return ask


def prepared(connection: psycopg.Connection[Any], sql: str) -> bytes:
    """The name of a statement that is prepared on a connection, now or before."""
    names = _prepared.setdefault(connection, {})
    name = names.get(sql)
    if name is None:
        # Never a name again: whether one was prepared is not known where that was interrupted.
        name = b"weightledger_%d" % next(_numbers)
        _checked(connection, connection.pgconn.prepare(name, numbered(sql)))
        names[sql] = name
    return name


def forget(connection: psycopg.Connection[Any], sql: str) -> None:
    """The server's side of the connection does not know a statement that was prepared."""
    _prepared.setdefault(connection, {}).pop(sql, None)


def whole_numbers(rows: Sequence[Sequence[bytes | None]]) -> list[tuple[int, ...]]:
    """Rows of whole numbers and truth values, from their binary form; null is 0."""
    return [tuple([int.from_bytes(value or b"", "big") for value in row]) for row in rows]


def numbered(sql: str) -> bytes:
    """The statement with libpq's marks for its values."""
    first, *others = sql.split("?")
    rest = [f"${number}{text}" for number, text in enumerate(others, 1)]
    return "".join((first, *rest)).encode()


def binary(params: Sequence[Any]) -> list[Any]:
    """The values as the server reads them; None is null."""
    pack = _NUMBER.pack
    return [
        value
        if value is None or type(value) is bytes
        else pack(value)
        if type(value) is int
        else value.encode()
        if type(value) is str
        else _array(value)
        for value in params
    ]


def _array(values: Sequence[int]) -> bytes:
    numbers = [_SIZE + _NUMBER.pack(number) for number in values]
    return _ARRAY.pack(1, 0, _BIGINT, len(numbers), 1) + b"".join(numbers)


def _checked(connection: psycopg.Connection[Any], answer: pq.abc.PGresult) -> None:
    """Raise the driver's error where the server did not do what it was to do."""
    if answer.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        return
    raise failure(connection.pgconn, answer)
