"""Asking the database in bounded time, for those who have to answer whether it answers or not.

A host that swallows packets leaves a driver waiting for minutes. A probe that waits as long says
nothing, and takes a thread of the server from the next.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from weightledger.ledger.errors import StorageError

T = TypeVar("T")

BOUND_S = 5.0
"""What an answer may take, in seconds."""

_MOST = 8
"""Questions at a time: what has no answer yet holds a connection."""


class Asking(Generic[T]):
    """A question to the database, each time on a thread that nobody waits for beyond the bound."""

    def __init__(self, question: Callable[[], T], bound_s: float | None = None) -> None:
        self._question = question
        self._bound_s = BOUND_S if bound_s is None else bound_s
        self._places = threading.BoundedSemaphore(_MOST)

    def __call__(self) -> T:
        """The answer, or what the question raises; StorageError when there is none in time."""
        end = time.monotonic() + self._bound_s
        if self._places.acquire(timeout=self._bound_s):
            answer: Future[T] = Future()
            threading.Thread(target=self._ask, args=(answer,), name="asking", daemon=True).start()
            try:
                return answer.result(max(0.0, end - time.monotonic()))
            except TimeoutError:
                pass
        raise StorageError(f"no answer from the database within {self._bound_s:g} s")

    def _ask(self, answer: Future[T]) -> None:
        try:
            answer.set_result(self._question())
        except BaseException as error:  # noqa: BLE001  (raised where it was asked)
            answer.set_exception(error)
        finally:
            self._places.release()
