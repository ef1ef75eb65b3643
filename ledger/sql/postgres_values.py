"""Long values to and from PostgreSQL: sent as they lie in memory, read piece by piece.

What libpq cannot send at once it moves to the front of its buffer, each time that some of it went,
unless it may wait until all is sent: 16 MB would be moved a hundred times. And a row that comes as
a whole takes fresh memory at both ends, where pieces of it stay in the processor's cache.
"""

from collections.abc import Generator, Sequence
from typing import Any

import psycopg
from psycopg import pq
from psycopg.abc import Buffer
from psycopg.adapt import Loader

from weightledger.ledger.sql.postgres_alone import binary, checked, numbered

# What cutting a value costs the server is as much as it saves at about a megabyte.
_WHOLE_BYTES = 2 * 1024 * 1024
_PIECE_BYTES = 256 * 1024

_BINARY = 1


def send(
    connection: psycopg.Connection[Any], sql: str, params: Sequence[Any]
) -> psycopg.Cursor[Any]:
    """Run a statement some of whose values are memoryviews; what it gives is not told.

    As for `Backend.alone`, the statement casts each of its values to its type.
    """
    pgconn = connection.pgconn
    values = binary(params)
    pgconn.nonblocking = 0
    try:  # without Python's lock
        checked(
            connection,
            pgconn.exec_params(numbered(sql), values, None, [_BINARY] * len(values), _BINARY),
        )
    finally:
        if pgconn.status == pq.ConnStatus.OK:
            pgconn.nonblocking = 1
    return connection.cursor()


def cursor(connection: psycopg.Connection[Any]) -> psycopg.Cursor[Any]:
    """One whose bytes are views of what libpq read, so that they are not copied once more."""
    lending = connection.cursor(binary=True)
    lending.adapters.register_loader("bytea", _Lent)
    return lending


def pieces(
    connection: psycopg.Connection[Any], sql: str, params: Sequence[Any], size: int
) -> Generator[tuple[int, Buffer]]:
    """See `Backend.pieces`; what is read while a piece is worked on waits in the socket."""
    sql = sql.replace("?", "%s")
    if size <= _WHOLE_BYTES:
        for (data,) in cursor(connection).execute(sql, params):
            yield 0, data
        return
    cut = (
        f"SELECT n, octet_length(data), substr(data, n + 1, {_PIECE_BYTES})"
        f" FROM ({sql}) AS v(data), generate_series(0, {size - 1}, {_PIECE_BYTES}) AS n"
    )
    for start, length, data in cursor(connection).stream(cut, params, binary=True):
        yield start, data if length == size else b""


class _Lent(Loader):
    """Bytes as they lie in a result."""

    format = pq.Format.BINARY

    def load(self, data: Buffer) -> Buffer:
        return data
