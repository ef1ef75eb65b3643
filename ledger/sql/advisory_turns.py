"""Turns on PostgreSQL: advisory locks of a model, which the server gives in the order of asking.

The turn's belongs to a transaction on a connection of its own, so it goes with the connection, and
a pooler between does not keep it. The message that asks for the lock asks for what is new, too,
which the server reads once the lock is had; and the last statement of a turn can go over the same
connection, so that its COMMIT gives the turn on. That makes two round trips of a turn that writes
one event.

Whoever waits is next once he has a second lock, and is told what is new by then: what he does with
it is not done in his turn, while the others wait. That lock is given back before the transaction
has ended, which only a session's can be; so whatever goes wrong ends the transaction and gives it
back in one message, on whose statements a pooler does not change the connection.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import errors

from weightledger.ledger.errors import StorageUnavailable
from weightledger.ledger.sql.layout import SEQ_BITS, SEQ_MASK
from weightledger.ledger.sql.postgres_alone import whole_numbers
from weightledger.ledger.sql.postgres_failures import ELSEWHERE
from weightledger.ledger.sql.postgres_pipeline import Pipeline, Rows, Statement
from weightledger.ledger.sql.turns import Question

_SPACE = 0x77656967  # "weig", beside the ids of models
_NEXT_SPACE = 0x7765696E

# Who is next is waited for no longer than that: he may be stopped. Then it goes without for a time.
_NEXT_S, _WITHOUT_NEXT_S = 1.0, 60.0
# A snapshot for each statement: what is read is what there is once the lock is had.
_BEGIN: Statement = ("BEGIN ISOLATION LEVEL READ COMMITTED", ())
_COMMIT: Statement = ("COMMIT", ())
_ROLLBACK: Statement = ("ROLLBACK", ())


class AdvisoryLock:
    """`ledger.sql.turns.Lock` over `pg_advisory_xact_lock`; `connect` gives an autocommit one."""

    writes = True

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], model_id: int) -> None:
        self._pipeline = Pipeline(connect)
        key, next_key = f"{_SPACE}, {model_id}", f"{_NEXT_SPACE}, {model_id}"
        self.condition: str | None = f"pg_try_advisory_xact_lock({key})"
        self._wait = f"pg_advisory_xact_lock({key})"
        self._wait_to_be_next = f"pg_advisory_lock({next_key})"
        self._next_no_more: Statement = (f"SELECT pg_advisory_unlock({next_key})", ())
        # That it got the turn, and is next no more then; nothing while the turn is another's.
        self._try: Statement = (
            f"SELECT CASE WHEN {self.condition} THEN pg_advisory_unlock({next_key}) END",
            (),
        )
        # In whatever order the server works these off: one that is not held is not given back.
        self._next_no_more_if_so: Statement = (
            f"{self._next_no_more[0]} FROM pg_locks WHERE locktype = 'advisory' AND granted"
            f" AND pid = pg_backend_pid() AND classid = {_NEXT_SPACE} AND objid = {model_id}"
            " AND objsubid = 2 AND database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())",
            (),
        )
        self._without_next_until = 0.0
        first = model_id << SEQ_BITS
        self._read: Statement = (
            f"SELECT max(event_key) & {SEQ_MASK} FROM events"
            f" WHERE event_key BETWEEN {first} AND {first | SEQ_MASK}",
            (),
        )
        self._holder: Statement = (
            "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'advisory' AND granted"
            f" AND classid = {_SPACE} AND objid = {model_id} AND objsubid = 2 AND database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())",
            (),
        )
        self._head: int | None = None
        self._news: Rows | None = None
        self._held = False

    def acquire(
        self,
        timeout_s: float,
        meanwhile: Callable[[], object] | None = None,
        question: Question | None = None,
    ) -> bool:
        """Whether it is held now; `meanwhile` is called by whoever is next."""
        self._head = self._news = None
        read = self._read if question is None else (question.sql, question.params)
        try:
            rows = self._acquired(timeout_s, meanwhile, read)
        except errors.LockNotAvailable:
            return False
        self._held = rows is not None
        if rows is None:
            self._told(_ROLLBACK)
        elif question is None:
            self._head = _number(rows)
        else:
            self._head, self._news = question.after + len(rows), rows
        return self._held

    def _acquired(
        self, timeout_s: float, meanwhile: Callable[[], object] | None, read: Statement
    ) -> Rows | None:
        """What was read with the lock; None where it was only tried. Raises LockNotAvailable."""
        if not timeout_s:
            locked, rows = self._asked(_BEGIN, (f"SELECT {self.condition}", ()), read)
            return rows if locked[0][0] == b"\1" else None
        if meanwhile is not None and time.monotonic() >= self._without_next_until:
            patience = _patience(min(timeout_s, _NEXT_S))
            queue = f"SELECT {patience}, {self._wait_to_be_next}"
            try:
                _, tried, rows = self._asked(_BEGIN, (queue, ()), self._try, read)
            except errors.LockNotAvailable:
                self._without_next_until = time.monotonic() + _WITHOUT_NEXT_S
            else:
                if tried[0][0] is not None:
                    return rows
                return self._followed_on(timeout_s, meanwhile, read, rows)
        wait = f"SELECT {_patience(timeout_s)}, {self._wait}"
        _, rows = self._asked(_BEGIN, (wait, ()), read)
        return rows

    def _followed_on(
        self, timeout_s: float, meanwhile: Callable[[], object], read: Statement, rows: Rows
    ) -> Rows:
        """Being next, do what there is to do until the turn, and wait for it."""
        try:
            if rows:
                self._news = rows
                meanwhile()
        except BaseException:  # the lock of who is next goes with the connection
            self.close()
            raise
        wait = f"SELECT {_patience(timeout_s)}, {self._wait}"
        _, _, rows = self._asked((wait, ()), self._next_no_more, read, again=False)
        return rows

    def news(self) -> Rows | None:
        """What the question gave that was asked with the lock."""
        return self._news

    def write(self, sql: str, params: Sequence[Any]) -> list[tuple[int, ...]]:
        """Run a turn's last statement, durable when this returns; the lock goes with it, whatever
        happens. Raises the driver's errors. See `Backend.alone`."""
        self._held = False
        try:
            (rows,) = self._pipeline.ask((sql, params), _COMMIT)
        except psycopg.Error:
            if self.connection is not None and not self.connection.closed:
                with contextlib.suppress(psycopg.Error):  # the next turn finds it lost
                    self._pipeline.send(_ROLLBACK)
            raise
        return whole_numbers(rows)

    @property
    def connection(self) -> psycopg.Connection[Any] | None:
        """What `write` used."""
        return self._pipeline.connection

    def release(self, head: int | None) -> None:
        """Let it go; the server's answer is read before the next statement.

        Nothing was written, so there is nothing to learn from it that an update could wait for.
        """
        if self._held:
            self._held = False
            self._told(_COMMIT)

    def settle(self) -> None:
        """Read the answer to the last COMMIT: until then the server may still hold the lock."""
        try:
            self._pipeline.settle()
        except psycopg.Error as error:
            raise self._lost(error) from error

    def head(self) -> int | None:
        """The last event's seq; while the lock is held, as it was when that began."""
        return self._head if self._held else _number(self._asked(self._read)[0])

    def under_way(self) -> object:
        """The transaction that holds the lock."""
        (rows,) = self._asked(self._holder)
        return rows[0][0] if rows else None

    def close(self) -> None:
        """Close the connection; what is held is let go with it."""
        self._held = False
        self._pipeline.close()

    def forked(self) -> None:
        """Nothing: see `postgres_sockets`."""

    def _asked(self, *statements: Statement, again: bool = True) -> list[Rows]:
        """What statements gave; LockNotAvailable is left as it is, and nothing is open then.

        They are asked `again` where a pooler's other connection did not know them; not those that
        go on with a transaction.
        """
        undo = _ROLLBACK, self._next_no_more_if_so
        try:
            try:
                return self._pipeline.ask(*statements)
            except ELSEWHERE:  # from now on they are not prepared
                if not again:
                    raise
                self._pipeline.ask(*undo)
                return self._pipeline.ask(*statements)
        except errors.LockNotAvailable:
            self._told(*undo)
            raise
        except psycopg.Error as error:
            raise self._lost(error) from error

    def _told(self, *statements: Statement) -> None:
        try:
            self._pipeline.send(*statements)
        except psycopg.Error as error:
            raise self._lost(error) from error

    def _lost(self, error: psycopg.Error) -> StorageUnavailable:
        """Give the connection up: another one is made for the next turn."""
        with contextlib.suppress(psycopg.Error):
            self.close()
        return StorageUnavailable(f"the connection for turns was lost: {error}")


def _patience(timeout_s: float) -> str:
    milliseconds = max(int(timeout_s * 1000), 1)
    return f"set_config('lock_timeout', '{milliseconds}', true)"


def _number(rows: Rows) -> int | None:
    ((value,),) = rows
    return None if value is None else int.from_bytes(value, "big")
