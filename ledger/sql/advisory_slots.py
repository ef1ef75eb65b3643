"""Slots on PostgreSQL: at most k processes at once do something that the others wait with.

A slot is an advisory lock of a transaction on a connection of its own, as in `advisory_turns`: it
goes with its holder, and with a holder that was suspended after a while. Whoever finds all of them
taken queues for one, by its name, and tries the others again now and then.
"""

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg import errors

from weightledger.ledger.errors import InvalidRequest, StorageUnavailable

MOST_SLOTS = 256

_SPACE = 0x77656973  # "weis", beside that of turns
_QUEUED_MS = 500
_MOST_HELD_S = 300

_TAKE_ANY = (
    "SELECT slot FROM generate_series(%s::int, %s::int) AS slot"
    " WHERE pg_try_advisory_xact_lock(%s, slot) LIMIT 1"
)


class AdvisorySlots:
    """`count` slots of one model, for one holder called `name`; for one thread."""

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        model_id: int,
        count: int,
        name: str,
    ) -> None:
        if not 1 <= count <= MOST_SLOTS:
            raise InvalidRequest(
                f"rolling must be from 1 to {MOST_SLOTS}, got {count}", param="rolling"
            )
        self._connect = connect
        self._first = model_id * MOST_SLOTS
        self._last = self._first + count - 1
        self._queue = self._first + zlib.crc32(name.encode()) % count
        self._connection: psycopg.Connection[Any] | None = None

    @contextlib.contextmanager
    def held(self, goes_on: Callable[[], bool]) -> Iterator[bool]:
        """Hold a slot in the block; False without one, since `goes_on`, asked before each time that
        one waits, said no. StorageUnavailable where the server does not answer."""
        try:
            taken = self._take()
            while not taken and goes_on():
                taken = self._queued() or self._take()
        except psycopg.Error as error:
            self.close()
            raise StorageUnavailable(f"the connection for slots was lost: {error}") from error
        try:
            yield taken
        finally:
            self._let_go()

    def close(self) -> None:
        """Close the connection, and let go with it what is held."""
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    def _begin(self, setting: str) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        limit = f"SET LOCAL idle_in_transaction_session_timeout = '{_MOST_HELD_S}s'"
        self._connection.execute(f"BEGIN; {limit}; {setting}".encode(), prepare=False)
        return self._connection

    def _take(self) -> bool:
        """Whether one is held now, of those that nobody holds."""
        taken = self._begin("").execute(_TAKE_ANY, (self._first, self._last, _SPACE)).fetchone()
        if taken is None:
            self._let_go()
        return taken is not None

    def _queued(self) -> bool:
        """Whether one is held now, after waiting for it."""
        connection = self._begin(f"SET LOCAL lock_timeout = {_QUEUED_MS}")
        try:
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_SPACE, self._queue))
        except errors.LockNotAvailable:
            self._let_go()
            return False
        return True

    def _let_go(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.execute("ROLLBACK")
        except psycopg.Error:  # then it was let go by the server
            self.close()
