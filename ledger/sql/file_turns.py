"""Turns on SQLite: two locked files a model, which together make a queue.

    FILE-turns/ID.next    held by whoever is next; the others wait for it
    FILE-turns/ID.turn    held during a turn; has the seq of the log's last event as eight bytes,
                          and behind it when the last turn ended, in ns, as eight more

Who comes waits for the first lock, with it for the second, and lets the first go once it has the
second. The holder of a turn has to queue like everybody else for another one, which a single lock
does not see to: its holder would take it again before those who wait have woken up.
"""

import fcntl
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightledger.ledger.sql.lock_waiter import LockWaiter
from weightledger.ledger.sql.turns import Meanwhile, Question

_HEAD_BYTES = 8
_TIME_BYTES = 8


class FileLock:
    """`ledger.sql.turns.Lock` over the two files."""

    condition = None
    writes = False

    def __init__(self, database: Path, model_id: int) -> None:
        self._database = database
        self._folder = Path(f"{database}-turns")
        self._next_file = self._folder / f"{model_id}.next"
        self._turn_file = self._folder / f"{model_id}.turn"
        self._next: int | None = None
        self._turn: int | None = None
        self._waiter: LockWaiter | None = None

    def acquire(
        self,
        timeout_s: float,
        meanwhile: Meanwhile | None = None,
        _question: Question | None = None,
    ) -> bool:
        """Whether it is held now; `meanwhile` is called by whoever is next."""
        until = time.monotonic() + timeout_s
        if self._next is None:
            self._next = self._opened(self._next_file)
        if not _try(self._next):
            if not timeout_s:
                return False
            given_up, self._next = self._next, None
            if not self._waited(given_up, timeout_s):
                return False
            self._next = given_up
        try:
            if self._turn is None:
                self._turn = self._opened(self._turn_file)
            if _try(self._turn):
                return True
            if not timeout_s:
                return False
            if meanwhile is not None:
                meanwhile()
                if _try(self._turn):
                    return True
            given_up, self._turn = self._turn, None
            if not self._waited(given_up, max(until - time.monotonic(), 0.0)):
                return False
            self._turn = given_up
            return True
        finally:
            fcntl.flock(self._next, fcntl.LOCK_UN)

    def news(self) -> None:
        """Nothing: a file answers no question."""

    def write(self, sql: str, params: Sequence[Any]) -> list[tuple[int, ...]]:
        """Never: a file runs no statement."""
        raise NotImplementedError("a file runs no statement")

    def release(self, head: int | None) -> None:
        """Let it go, and leave what is known of the log to whoever comes next."""
        assert self._turn is not None
        try:
            ended = time.time_ns().to_bytes(_TIME_BYTES, "big")
            if head is None:
                os.pwrite(self._turn, ended, _HEAD_BYTES)
            else:
                os.pwrite(self._turn, head.to_bytes(_HEAD_BYTES, "big") + ended, 0)
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    def settle(self) -> None:
        """Nothing to wait for."""

    def head(self) -> int | None:
        """What the last holder left."""
        left = self._left(0, _HEAD_BYTES)
        return int.from_bytes(left, "big") if len(left) == _HEAD_BYTES else None

    def under_way(self) -> object:
        """When the turn before it ended."""
        return self._left(_HEAD_BYTES, _TIME_BYTES)

    def _waited(self, descriptor: int, timeout_s: float) -> bool:
        """See `LockWaiter.wait`."""
        waiter, self._waiter = self._waiter or LockWaiter(), None
        if not waiter.wait(descriptor, timeout_s):
            return False
        self._waiter = waiter
        return True

    def _left(self, start: int, size: int) -> bytes:
        if self._turn is None:
            self._turn = self._opened(self._turn_file)
        return os.pread(self._turn, size, start)

    def close(self) -> None:
        """Close the files; what is held is let go with them."""
        for descriptor in (self._next, self._turn):
            if descriptor is not None:
                os.close(descriptor)
        self._next = self._turn = None
        if self._waiter is not None:
            self._waiter.end()
            self._waiter = None

    def forked(self) -> None:
        """What a fork closes stays locked for the process that locked it; its threads are not
        there."""
        self._waiter = None
        self.close()

    def _opened(self, file: Path) -> int:
        """A descriptor of a file, which may be used by whoever may use the database."""
        mode = self._database.stat().st_mode & 0o666
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(file, flags, mode)
        except FileNotFoundError:
            self._folder.mkdir(mode=mode | (mode & 0o444) >> 2, exist_ok=True)
            return os.open(file, flags, mode)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
