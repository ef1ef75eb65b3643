"""Turns on PostgreSQL: an advisory lock a model, which the server gives in the order of asking.

It belongs to a transaction on a connection of its own, so it goes with the connection, and a pooler
between does not keep it. The message that asks for the lock asks for what is new, too, which the
server reads once the lock is had; and the last statement of a turn can go over the same connection,
so that its COMMIT gives the turn on. That makes two round trips of a turn that writes one event.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import errors

from weightledger.ledger.errors import StorageUnavailable
from weightledger.ledger.sql.layout import SEQ_BITS, SEQ_MASK
from weightledger.ledger.sql.postgres_alone import whole_numbers
from weightledger.ledger.sql.postgres_failures import ELSEWHERE
from weightledger.ledger.sql.postgres_pipeline import Pipeline, Rows
from weightledger.ledger.sql.turns import Meanwhile, Question, Statement

_SPACE = 0x77656967  # "weig", beside the ids of models
# A snapshot for each statement: what is read is what there is once the lock is had.
_BEGIN: Statement = ("BEGIN ISOLATION LEVEL READ COMMITTED", ())
# Of two servers that run at once none has the same; nobody needs a privilege to ask.
_PLACE: Statement = (
    "SELECT convert_to(concat_ws('/', current_setting('port'),"
    " extract(epoch FROM pg_postmaster_start_time()),"
    " (SELECT oid FROM pg_database WHERE datname = current_database()), current_schema(),"
    " session_user, current_user), 'UTF8')",
    (),
)
_COMMIT: Statement = ("COMMIT", ())
_ROLLBACK: Statement = ("ROLLBACK", ())


class AdvisoryLock:
    """`ledger.sql.turns.Lock` over `pg_advisory_xact_lock`; `connect` gives an autocommit one."""

    writes = True
    deferring = False
    neighbours = None

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], model_id: int) -> None:
        self._pipeline = Pipeline(connect)
        self._key = f"{_SPACE}, {model_id}"
        self.condition: str | None = f"pg_try_advisory_xact_lock({self._key})"
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
        meanwhile: Meanwhile | None = None,
        question: Question | None = None,
    ) -> bool:
        """Whether it is held now; `meanwhile` is told nothing, since the server does not tell who
        is next: at a guess, what it takes is more than what it saves."""
        self._head = self._news = None
        if timeout_s:
            milliseconds = max(int(timeout_s * 1000), 1)
            patience = f"set_config('lock_timeout', '{milliseconds}', true)"
            ask = f"SELECT {patience}, pg_advisory_xact_lock({self._key})"
        else:
            ask = f"SELECT {self.condition}"
        read = self._read if question is None else (question.sql, question.params)
        try:
            locked, rows = self._asked(_BEGIN, (ask, ()), read)
        except errors.LockNotAvailable:
            return False
        self._held = bool(timeout_s) or locked[0][0] == b"\1"
        if not self._held:
            self._told(_ROLLBACK)
            return False
        if question is None:
            self._head = _number(rows)
        else:
            self._head, self._news = question.after + len(rows), rows
        return True

    def news(self) -> Rows | None:
        """What the question gave that was asked with the lock."""
        return self._news

    def write(self, statements: Sequence[Statement]) -> list[tuple[int, ...]]:
        """Run a turn's last statements, durable when this returns; the lock goes with them,
        whatever happens. Where it is not held the first of them asks for `condition`. Raises the
        driver's errors. See `Lock.write`."""
        before = () if self._held else (_BEGIN,)
        self._held = False
        try:
            answers = self._pipeline.ask(*before, *statements, _COMMIT)
        except psycopg.Error:
            if self.connection is not None and not self.connection.closed:
                with contextlib.suppress(psycopg.Error):  # the next turn finds it lost
                    self._pipeline.send(_ROLLBACK)
            raise
        return [row for rows in answers for row in whole_numbers(rows)]

    @property
    def connection(self) -> psycopg.Connection[Any] | None:
        """What `write` used."""
        return self._pipeline.connection

    def release(self, head: int | None) -> bool:
        """Let it go; the server's answer is read before the next statement, or by `settle`.

        Nothing was written, so there is nothing to learn from it that an update could wait for.
        Whether it was held: else it went with what was written.
        """
        held, self._held = self._held, False
        if held:
            self._told(_COMMIT)
        return held

    def is_free(self) -> bool:
        """See `Lock.is_free`: the statement that writes finds out."""
        return True

    def settle(self) -> None:
        """Read the answer to the last COMMIT: until then the server may still hold the lock."""
        try:
            self._pipeline.settle()
        except psycopg.Error as error:
            raise self._lost(error) from error

    def head(self) -> int | None:
        """The last event's seq; while the lock is held, as it was when that began."""
        return self._head if self._held else _number(self._asked(self._read)[0])

    def place(self) -> bytes:
        """What tells the schema of this server, and who writes to it, from every other one."""
        ((place,),) = self._asked(_PLACE)[0]
        assert place is not None, "it is never null"
        return place

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

    def _asked(self, *statements: Statement) -> list[Rows]:
        """What statements gave; LockNotAvailable is left as it is, and nothing is open then."""
        try:
            try:
                return self._pipeline.ask(*statements)
            except ELSEWHERE:  # from now on they are not prepared
                self._pipeline.ask(_ROLLBACK)
                return self._pipeline.ask(*statements)
        except errors.LockNotAvailable:
            self._told(_ROLLBACK)
            raise
        except psycopg.Error as error:
            raise self._lost(error) from error

    def _told(self, statement: Statement) -> None:
        try:
            self._pipeline.send(statement)
        except psycopg.Error as error:
            raise self._lost(error) from error

    def _lost(self, error: psycopg.Error) -> StorageUnavailable:
        """Give the connection up: another one is made for the next turn."""
        with contextlib.suppress(psycopg.Error):
            self.close()
        return StorageUnavailable(f"the connection for turns was lost: {error}")


def _number(rows: Rows) -> int | None:
    ((value,),) = rows
    return None if value is None else int.from_bytes(value, "big")
