"""Several prepared statements in one message to PostgreSQL, on a connection of their own.

By libpq's pipeline mode: the server works them off one after the other and answers all, or stops at
the first that fails.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import pq

from weightledger.ledger.sql.postgres_alone import binary, numbered
from weightledger.ledger.sql.postgres_failures import ELSEWHERE
from weightledger.ledger.sql.postgres_waiting import failure, flush, result
from weightledger.ledger.sql.turns import Statement

Rows = list[list[bytes | None]]
"""What a statement gave, each value as the server sends it in binary form."""

_BINARY = 1


class Pipeline:
    """A connection that is made when it is wanted, and again after it was lost; for one thread at
    a time. `connect` gives an autocommit one. Methods raise psycopg.Error."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self._connect = connect
        self._connection: psycopg.Connection[Any] | None = None
        self._names: dict[str, bytes] = {}
        self._counted = 0
        self._named = True
        self._unread = False  # statements were sent whose answers have not been read

    @property
    def connection(self) -> psycopg.Connection[Any] | None:
        """The last one, which may be lost."""
        return self._connection

    def ask(self, *statements: Statement) -> list[Rows]:
        """What each of them gave."""
        self.send(*statements)
        return self._answers()

    def send(self, *statements: Statement) -> None:
        """The same; the answers are read before the next statement."""
        self.settle()
        pgconn = self._opened()
        try:
            for sql, params in statements:
                self._queue(pgconn, sql, params)
            pgconn.pipeline_sync()
            self._unread = True
            flush(pgconn)
        except psycopg.Error:
            raise
        except BaseException:  # interrupted: nobody knows what is on its way
            self.close()
            raise

    def settle(self) -> None:
        """Read the answers that are still to be read."""
        if self._unread:
            self._answers()

    def close(self) -> None:
        """Close the connection; the server gives back what was held by it."""
        self._unread = False
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    def _opened(self) -> pq.abc.PGconn:
        if self._connection is None or self._connection.closed:
            self._names.clear()
            self._unread = False
            self._connection = self._connect()
            self._connection.pgconn.enter_pipeline_mode()
        return self._connection.pgconn

    def _queue(self, pgconn: pq.abc.PGconn, sql: str, params: Sequence[Any]) -> None:
        values = binary(params)
        formats = [_BINARY] * len(values)
        if not self._named:
            pgconn.send_query_params(numbered(sql), values, None, formats, _BINARY)
            return
        name = self._names.get(sql)
        if name is None:
            # Never a name again: whether one was prepared is not known where something failed.
            self._counted += 1
            name = self._names[sql] = b"weightledger_turn_%d" % self._counted
            pgconn.send_prepare(name, numbered(sql))
        pgconn.send_query_prepared(name, values, formats, _BINARY)

    def _answers(self) -> list[Rows]:
        assert self._connection is not None
        pgconn = self._connection.pgconn
        given: list[Rows] = []
        error: psycopg.Error | None = None
        try:
            while (answer := _next(pgconn)).status != pq.ExecStatus.PIPELINE_SYNC:
                if answer.status == pq.ExecStatus.FATAL_ERROR:
                    error = error or failure(pgconn, answer)
                    if pgconn.status == pq.ConnStatus.BAD:
                        break
                elif answer.status == pq.ExecStatus.TUPLES_OK:
                    columns = range(answer.nfields)
                    given.append(
                        [
                            [answer.get_value(row, column) for column in columns]
                            for row in range(answer.ntuples)
                        ]
                    )
            self._unread = False
        except psycopg.Error:
            self._unread = False
            raise
        except BaseException:
            self.close()
            raise
        if error is not None:
            self._names.clear()
            if isinstance(error, ELSEWHERE):
                self._named = False
            raise error
        return given


def _next(pgconn: pq.abc.PGconn) -> pq.abc.PGresult:
    for _ in range(2):  # between the answers to two statements there is none
        answer = result(pgconn)
        if answer is not None:
            return answer
    pgconn.finish()  # nothing that comes would be understood
    raise psycopg.OperationalError("the server answered fewer statements than it was sent")
