"""Waiting for a locked file, but not for ever.

The operating system offers no time limit for that, so a thread waits where one has to. It is kept
for the next time: starting one takes five times as long as asking one that is there.
"""

import contextlib
import fcntl
import os
import queue
import threading


class LockWaiter:
    """A thread that locks one file after another, for one thread at a time that waits for it.

    Of no use any more once `wait` has given False or raised.
    """

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._came = threading.Lock()  # free while a lock came that nobody has taken note of
        self._came.acquire()
        self._guard = threading.Lock()
        self._given_up = False
        self._failure: OSError | None = None
        threading.Thread(target=self._run, name="ledger-turn", daemon=True).start()

    def wait(self, descriptor: int, timeout_s: float) -> bool:
        """Whether the lock came in time; otherwise the descriptor is closed once it comes.

        Raises OSError, and has closed it, where it cannot be locked.
        """
        self._asked.put(descriptor)
        try:
            came = self._came.acquire(timeout=timeout_s) or not self._give_up()
        except BaseException:  # interrupted: nobody takes what comes
            if not self._give_up():
                os.close(descriptor)
                self.end()
            raise
        if self._failure is not None:
            os.close(descriptor)
            raise self._failure
        return came

    def end(self) -> None:
        """Let the thread go."""
        self._asked.put(None)

    def _give_up(self) -> bool:
        """Whether the lock has not come by now: then it is nobody's."""
        with self._guard:
            self._given_up = not self._came.acquire(blocking=False)
            return self._given_up

    def _run(self) -> None:
        while (descriptor := self._asked.get()) is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
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
