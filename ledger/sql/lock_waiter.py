"""Waiting for locked bytes of a file, but not for ever.

The operating system offers no time limit for that, so a thread waits where one has to. It is kept
for the next time: starting one takes five times as long as asking one that is there.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Callable

from weightledger.ledger import interrupts
from weightledger.ledger.sql import byte_locks

_Bytes = tuple[int, int, int]
"""A descriptor, the first byte of its file, and how many."""


class LockWaiter:
    """A thread that locks some bytes after others, for one thread at a time that waits for them.

    Of no use any more once `wait` has given False or raised.
    """

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[_Bytes | None] = queue.SimpleQueue()
        self._came = threading.Lock()  # free while a lock came that nobody has taken note of
        self._came.acquire()
        self._guard = threading.Lock()
        self._given_up = False
        self._failure: OSError | None = None
        threading.Thread(target=self._run, name="ledger-turn", daemon=True).start()

    def wait(
        self, descriptor: int, first: int, count: int, pause_s: float, patient: Callable[[], bool]
    ) -> bool:
        """Whether the bytes came while there was patience, which is asked after each pause.

        Otherwise the descriptor holds nothing from now on, and is closed once they come. Raises
        OSError, and has closed it, where it cannot be locked.
        """
        self._asked.put((descriptor, first, count))
        try:
            while not self._came.acquire(timeout=pause_s):
                interrupts.handle()
                if not patient():
                    if self._give_up(descriptor):
                        return False
                    break
        except BaseException:  # interrupted: nobody takes what comes
            if not self._give_up(descriptor):
                os.close(descriptor)
                self.end()
            raise
        if self._failure is not None:
            os.close(descriptor)
            raise self._failure
        return True

    def end(self) -> None:
        """Let the thread go."""
        self._asked.put(None)

    def _give_up(self, descriptor: int) -> bool:
        """Whether the bytes have not come by now: then they are nobody's, and neither is what the
        descriptor holds."""
        with self._guard:
            self._given_up = not self._came.acquire(blocking=False)
            if self._given_up:
                with contextlib.suppress(OSError):
                    byte_locks.let_go(descriptor)
            return self._given_up

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            descriptor = asked[0]
            try:
                byte_locks.wait_for(*asked)
            except OSError as error:
                self._failure = error
            with self._guard:
                if self._given_up:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
                    return
                failed = self._failure is not None  # before somebody may ask for the next one
                self._came.release()
            if failed:
                return
