"""Threads for inference: so many at a time, so many in line, and the rest is told to come back."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from weightledger.ledger.errors import Unavailable

T = TypeVar("T")


class Workers:
    """A thread pool whose line has an end; `ending` is set when the server is about to stop."""

    def __init__(self, threads: int, queue: int, ending: threading.Event | None = None) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="inference")
        self._threads = threads
        self._queue = queue
        self._inside = 0
        self._lock = threading.Lock()
        self._ending = ending or threading.Event()

    @property
    def waiting(self) -> int:
        """How many wait for a thread."""
        return max(0, self._inside - self._threads)

    def check(self) -> None:
        """Raise Unavailable when the server is about to stop: what still runs ends with that."""
        if self._ending.is_set():
            raise Unavailable("the server is stopping; ask again when it is back")

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Run `work` on a thread; Unavailable when all are busy and the line is full.

        Cancelling what is returned takes it out of the line.
        """
        self.check()
        with self._lock:
            if self._inside >= self._threads + self._queue:
                raise Unavailable(
                    f"{self._threads} inferences are running and {self._queue} are waiting, the "
                    "most this server takes; retry later"
                )
            self._inside += 1
        future = self._pool.submit(work)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: "Future[T]") -> None:
        with self._lock:
            self._inside -= 1
