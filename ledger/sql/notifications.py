"""NOTIFY and LISTEN: how processes on PostgreSQL tell each other that a log has grown."""

import contextlib
import logging
import selectors
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import psycopg

from weightledger.ledger.sql.wakeups import POLL_S

logger = logging.getLogger(__name__)

_CHANNEL = "weightledger"
_TELL = f"SELECT pg_notify('{_CHANNEL}', %s)"

_COALESCED_S = 0.05  # least time between two notifications of one process
_RETRY_S = 1.0
_PROBE_S = 2.0  # within which what one tells oneself has to arrive
_LOOK_UP_S = 0.5  # how often a listener looks whether what it told itself has arrived
_LAST_WORDS_S = 2.0

Connect = Callable[[], psycopg.Connection[Any]]


class Teller:
    """Sends one notification for all that was committed since the last, on a thread of its own."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._models: set[int] = set()
        self._due, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-notify", daemon=True)
        self._thread.start()

    def tell(self, model_id: int) -> None:
        """See `wakeups.Voice`."""
        self._models.add(model_id)
        self._due.set()

    def close(self) -> None:
        """See `wakeups.Voice`; what cannot be told soon is left to those who look by themselves."""
        self._ending.set()
        self._due.set()
        self._thread.join(_LAST_WORDS_S)

    def _run(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        problem: str | None = None
        while True:
            self._due.wait()
            self._due.clear()
            try:
                if connection is None or connection.closed:
                    connection = self._connect()
                self._send(connection)
                problem = None
            except psycopg.Error as error:
                idle, connection = connection, None
                _closed(idle)
                self._due.set()
                if idle is not None and not self._ending.is_set():
                    continue  # it was cut off while there was nothing to tell: at once by another
                if problem is None:  # an outage is one line
                    problem = " ".join(str(error).split())
                    logger.warning("followers are not told, they look by themselves: %s", problem)
                if self._ending.wait(_RETRY_S):
                    return
            if self._ending.is_set() and not self._due.is_set():
                _closed(connection)
                return
            self._ending.wait(_COALESCED_S)

    def _send(self, connection: psycopg.Connection[Any]) -> None:
        for model_id in tuple(self._models):  # what is told meanwhile is sent next time
            self._models.discard(model_id)
            try:
                connection.execute(_TELL, (str(model_id),))
            except psycopg.Error:
                self._models.add(model_id)  # it is not told yet
                raise


class Listener:
    """Listens on a thread of its own, and calls `heard` with the model that has news.

    With None where any may have, since nothing was heard until now or is heard from now on.
    `probing` tells itself something first: behind a pooler LISTEN succeeds and nothing is heard.
    """

    def __init__(
        self, connect: Connect, heard: Callable[[int | None], None], probing: bool
    ) -> None:
        self._connect = connect
        self._heard = heard
        self._probing = probing
        self.hears = False
        self._ending = threading.Event()
        self._bell, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="ledger-listen", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See `wakeups.Ear`."""
        self._ending.set()
        with self._bell:
            self._bell.shutdown(socket.SHUT_RDWR)  # also where a fork has it, too
        self._thread.join(_LAST_WORDS_S)

    def _run(self) -> None:
        with self._end:
            self._hear_until_it_ends()

    def _hear_until_it_ends(self) -> None:
        problem: str | None = None
        while not self._ending.is_set():
            connection: psycopg.Connection[Any] | None = None
            try:
                connection = self._connect()
                connection.execute(f"LISTEN {_CHANNEL}")
                self._listen(connection)
                problem = None
            except psycopg.Error as error:
                text = " ".join(str(error).split())
                if problem is None:
                    logger.warning("nothing is heard of new events, one looks for them: %s", text)
                problem = text
            finally:
                self._hear(False)
                _closed(connection)
            self._ending.wait(_RETRY_S)

    def _listen(self, connection: psycopg.Connection[Any]) -> None:
        probe = f"probe {uuid.uuid4().hex}"
        if self._probing:
            with self._connect() as other:  # by way of what writers go through
                other.execute(_TELL, (probe,))
        else:
            self._hear(True)
        probed = time.monotonic()
        with selectors.DefaultSelector() as either:
            either.register(connection, selectors.EVENT_READ)
            either.register(self._end, selectors.EVENT_READ)
            while not self._ending.is_set():
                for notification in connection.notifies(timeout=0):
                    if notification.payload == probe:
                        self._hear(True)
                    elif notification.payload.isdigit():
                        self._heard(int(notification.payload))
                if not self.hears and time.monotonic() - probed > _PROBE_S:
                    logger.warning(
                        "what the database tells does not arrive, as behind a pooler: one looks for"
                        " new events every %g s",
                        POLL_S,
                    )
                    self._ending.wait()
                either.select(None if self.hears else _LOOK_UP_S)

    def _hear(self, hears: bool) -> None:
        """Say so first: whoever still relies on the old answer is woken up, and looks."""
        self.hears = hears
        self._heard(None)


def _closed(connection: psycopg.Connection[Any] | None) -> None:
    if connection is not None:
        with contextlib.suppress(psycopg.Error):
            connection.close()
