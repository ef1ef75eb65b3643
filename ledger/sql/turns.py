"""Writers of one model, in whatever process, one at a time and in the order in which they came.

A turn is held while its holder catches up, works out its event and appends it, so that nobody's
work is in vain. It is a courtesy: what keeps the log right is the compare-and-set of the append,
so a turn that cannot be had (a lock that does not work on this file system, a holder that was
suspended) is gone without. `file_turns` has the locks for SQLite, `advisory_turns` for PostgreSQL.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from weightledger.ledger.errors import LedgerError

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""A holder under which the log has not moved for so long is not waited for any longer."""


class Lock(Protocol):
    """A lock between processes that is given to those who wait for it in order.

    Every method may raise OSError or LedgerError. The lock goes with a holder that dies.
    """

    def acquire(self, timeout_s: float) -> bool:
        """Whether it is held now; with 0 it is only tried."""

    def release(self, head: int | None) -> None:
        """Let it go; `head` is the seq of the log's last event, where that is known."""

    def head(self) -> int | None:
        """The seq of the log's last event as far as holders told, without holding the lock."""

    def close(self) -> None:
        """Give back what it takes; it is not used any more."""


@dataclass(slots=True)
class Turn:
    """One writer's turn; `head` is the seq of the log's last event, None when that is not known.

    It is told by whoever had a turn before, so it may lag behind. Whoever appends says so here.
    """

    head: int | None = None


class Turnstile:
    """The turns of one model in this process; safe to share between threads."""

    def __init__(self, lock: Lock, model: str) -> None:
        self._lock = lock
        self._model = model
        self._ours = threading.RLock()
        self._turn: Turn | None = None
        self._stuck = False
        self._left: int | None = None  # the head when our last turn ended

    @contextlib.contextmanager
    def turn(self) -> Iterator[Turn]:
        """Wait for this writer's turn; within a turn there is no further one to wait for."""
        with self._ours:
            if self._turn is not None:
                yield self._turn
                return
            held = self._acquired()
            self._turn = turn = Turn(self._read_head() if held else None)
            try:
                yield turn
            finally:
                self._turn = None
                if held:
                    self._release(turn)

    def close(self) -> None:
        """Give back the lock's files or connection."""
        with self._ours, contextlib.suppress(OSError, LedgerError):
            self._lock.close()

    def _acquired(self) -> bool:
        try:
            if self._stuck:
                self._stuck = not self._lock.acquire(0)
                return not self._stuck
            # The head is asked for only once a wait was in vain: on PostgreSQL it is a round trip.
            before, known = self._left, self._left is not None
            while not self._lock.acquire(PATIENCE_S):
                now = self._lock.head()
                if known and now == before:
                    self._stuck = True
                    logger.warning(
                        "a writer of %s holds its turn and has not written for %d s: going on"
                        " without waiting for it",
                        self._model,
                        PATIENCE_S,
                    )
                    return False
                before, known = now, True
        except (OSError, LedgerError) as error:
            logger.warning("writers of %s go without turns: %s", self._model, error)
            return False
        return True

    def _read_head(self) -> int | None:
        try:
            return self._lock.head()
        except (OSError, LedgerError):
            return None

    def _release(self, turn: Turn) -> None:
        self._left = turn.head
        try:
            self._lock.release(turn.head)
        except (OSError, LedgerError) as error:
            logger.warning("a turn of %s could not be given on: %s", self._model, error)
