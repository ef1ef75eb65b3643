"""Turns on PostgreSQL: an advisory lock a model, which the server gives in the order of asking.

It belongs to a transaction on a connection of its own, so it goes with the connection, and a pooler
between does not keep it. That transaction reads the log's last event once it has the lock and
writes nothing.
"""

import contextlib
import select
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import errors, pq

from weightledger.ledger.errors import StorageUnavailable
from weightledger.ledger.sql.layout import SEQ_BITS, SEQ_MASK
from weightledger.ledger.sql.turns import Meanwhile

_SPACE = 0x77656967  # "weig", beside the ids of models


class AdvisoryLock:
    """`ledger.sql.turns.Lock` over `pg_advisory_xact_lock`; `connect` gives an autocommit one."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], model_id: int) -> None:
        self._connect = connect
        self._key = f"{_SPACE}, {model_id}"
        self.condition: str | None = f"pg_try_advisory_xact_lock({self._key})"
        first = model_id << SEQ_BITS
        self._read = (
            f"SELECT max(event_key) & {SEQ_MASK} FROM events"
            f" WHERE event_key BETWEEN {first} AND {first | SEQ_MASK}"
        )
        self._connection: psycopg.Connection[Any] | None = None
        self._head: int | None = None
        self._held = False
        self._ending = False  # a COMMIT was sent whose answer has not been read

    def acquire(self, timeout_s: float, meanwhile: Meanwhile | None = None) -> bool:
        """Whether it is held now; `meanwhile` is not called, since the server does not tell who is
        next: at a guess, what it takes is more than what it saves."""
        self._head = None
        if timeout_s:
            milliseconds = max(int(timeout_s * 1000), 1)
            ask = f"SET LOCAL lock_timeout = {milliseconds}; SELECT pg_advisory_xact_lock"
        else:
            ask = "SELECT pg_try_advisory_xact_lock"
        try:
            answers = self._run(f"BEGIN; {ask}({self._key}); {self._read}")
        except errors.LockNotAvailable:
            self._run("ROLLBACK")
            return False
        *_, locked, head = answers
        self._head = None if head is None else int(head)
        self._held = bool(timeout_s) or locked == b"t"
        if not self._held:
            self._run("ROLLBACK")
        return self._held

    def release(self, head: int | None) -> None:
        """Let it go; the server's answer is read before the next statement.

        Nothing was written, so there is nothing to learn from it that an update could wait for.
        """
        self._held = False
        if self._connection is None:
            return
        try:
            self._connection.pgconn.send_query(b"COMMIT")
            self._connection.pgconn.flush()
        except psycopg.Error as error:
            raise self._lost(error) from error
        self._ending = True

    def settle(self) -> None:
        """Read the answer to the last COMMIT: until then the server may still hold the lock."""
        try:
            self._end()
        except psycopg.Error as error:
            raise self._lost(error) from error

    def head(self) -> int | None:
        """The last event's seq; while the lock is held, as it was when that began."""
        if self._held:
            return self._head
        (head,) = self._run(self._read)
        return None if head is None else int(head)

    def close(self) -> None:
        """Close the connection; what is held is let go with it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._ending = False

    def _run(self, statements: str) -> list[bytes | None]:
        """Send statements in one message; the first column of the row of each that gives one.

        By libpq's own calls: a cursor costs three times as much processor time.
        """
        try:
            self._end()
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            pgconn = self._connection.pgconn
            pgconn.send_query(statements.encode())
            pgconn.flush()
            rows = []
            failure: psycopg.Error | None = None
            while (answer := self._next_answer()) is not None:
                if answer.status == pq.ExecStatus.FATAL_ERROR:
                    failure = errors.error_from_result(answer)
                elif answer.ntuples:
                    rows.append(answer.get_value(0, 0))
            if failure is not None:
                raise failure
            return rows
        except errors.LockNotAvailable:
            raise
        except psycopg.Error as error:
            raise self._lost(error) from error
        except BaseException:  # interrupted: what was asked for may be held, or be on its way
            self.close()
            raise

    def _next_answer(self) -> pq.abc.PGresult | None:
        """The next answer, waited for without Python's lock, which `get_result` would hold."""
        assert self._connection is not None
        pgconn = self._connection.pgconn
        while pgconn.is_busy():
            poll = select.poll()
            poll.register(pgconn.socket, select.POLLIN)
            poll.poll()
            pgconn.consume_input()
        return pgconn.get_result()

    def _end(self) -> None:
        """Read the answer to the last COMMIT, if there is one to read."""
        if self._ending and self._connection is not None:
            self._ending = False
            while self._next_answer() is not None:
                pass

    def _lost(self, error: psycopg.Error) -> StorageUnavailable:
        """Give the connection up: another one is made for the next turn."""
        with contextlib.suppress(psycopg.Error):
            self.close()
        return StorageUnavailable(f"the connection for turns was lost: {error}")
