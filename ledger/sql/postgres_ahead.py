"""Rows of many keys on PostgreSQL, a page after the other: each is asked for before the one before
is given, so that the server reads it while that is worked on.

A page of small events fits into what the kernel keeps between two processes, so the server is done
with it by then; of a larger one it waits for us to read. This is the driver's own interface to
libpq, without its pipeline mode: one statement is under way at a time.
"""

from collections.abc import Generator
from typing import Any

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer

from weightledger.ledger.sql.postgres_alone import binary, forget, numbered, prepared
from weightledger.ledger.sql.postgres_failures import ELSEWHERE
from weightledger.ledger.sql.postgres_waiting import failure, flush, only_answer

# Rows; where updates are small they have three kilobytes each.
_PAGE = 64
_BINARY = 1
_FORMATS = [_BINARY] * 3

Rows = list[tuple[Any, ...]]


def pages(
    connection: psycopg.Connection[Any], sql: str, bounds: tuple[int, int], most: int
) -> Generator[Rows, None, None]:
    """See `Backend.pages`."""
    first, last = bounds
    asking = _Asking(connection, sql)
    # Of many rows each page is bounded by the keys that it has where there is no gap: the server
    # may not know yet how many there are, and would sort all of them for each page.
    bounded = most > _PAGE
    try:
        if most > 0:
            asking.ask(first, min(last, first + _PAGE - 1) if bounded else last, most)
        while asking.under_way:
            page = asking.answer()
            most -= len(page)
            if page:
                first = page[-1][0] + 1
            full = len(page) == _PAGE
            if most and (full or bounded):
                bounded = bounded and full  # what lies behind a gap is asked for as well
                asking.ask(first, min(last, first + _PAGE - 1) if bounded else last, most)
            if page:
                yield page
    finally:
        asking.settle()


class _Asking:
    """One statement with two keys and a limit, by name where the connection knows it."""

    def __init__(self, connection: psycopg.Connection[Any], sql: str) -> None:
        self._connection = connection
        self._sql = sql
        self._reader = Transformer(connection)
        self._named = True
        self._params: tuple[int, int, int] | None = None

    @property
    def under_way(self) -> bool:
        return self._params is not None

    def ask(self, first: int, last: int, most: int) -> None:
        """Send it for the first page of at most so many rows."""
        self._send((first, last, min(most, _PAGE)))

    def answer(self) -> Rows:
        """What it gave."""
        pgconn, params = self._connection.pgconn, self._params
        assert params is not None
        self._params = None
        answer = only_answer(pgconn)
        if answer.status == pq.ExecStatus.TUPLES_OK:
            self._reader.set_pgresult(answer)
            return self._reader.load_rows(0, answer.ntuples, tuple)
        error = failure(pgconn, answer)
        if not self._named or not isinstance(error, ELSEWHERE):
            raise error
        # A pooler gave us another connection of the server's.
        forget(self._connection, self._sql)
        self._named = False
        self._send(params)
        return self.answer()

    def settle(self) -> None:
        """Read what is still to come, for which nobody waits any more."""
        if self._params is not None:
            self._params = None
            only_answer(self._connection.pgconn)

    def _send(self, params: tuple[int, int, int]) -> None:
        pgconn, values = self._connection.pgconn, binary(params)
        if self._named:
            name = prepared(self._connection, self._sql)
            pgconn.send_query_prepared(name, values, _FORMATS, _BINARY)
        else:
            pgconn.send_query_params(numbered(self._sql), values, None, _FORMATS, _BINARY)
        self._params = params
        flush(pgconn)
