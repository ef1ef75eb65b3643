"""A gate for weights that are written where they lie: many readers or one writer.

A writer waits for the readers inside; readers that come meanwhile wait for it. Those get in before
the next writer, so neither side starves. Where a model writes into itself as it runs, readers go
one after another.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

from weightledger.ledger import interrupts
from weightledger.ledger.errors import LedgerError


class Gate:
    """Readers share it, a writer has it alone. Readers may nest; a writer may not be a reader.

    With `one_by_one` a reader has it alone too, but for those of its own thread.
    """

    def __init__(self, *, one_by_one: bool = False) -> None:
        self._one_by_one = one_by_one
        self._condition = threading.Condition()
        self._writers = threading.Lock()
        self._inside: Counter[int] = Counter()
        self._shut = False
        self._round = 0
        self._queued = 0
        self._owed = 0
        self._waiting = 0

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """Share the gate with other readers; may be left from another thread."""
        entry = _Entry(self)
        try:
            with interrupts.held, self._condition:
                # Waiting in a thread that is inside already would wait for itself.
                if not self._inside[entry.thread] and (self._shut or self._is_taken()):
                    self._wait()
                self._inside[entry.thread] += 1
                entry.inside = True
            yield
        finally:
            entry.leave()

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """Have the gate alone. Raises LedgerError in a thread that is inside as a reader."""
        self.refuse_reader()
        with interrupts.held:
            interrupts.acquire(self._writers)
            try:
                # Before asking for the lock, which readers that keep coming hardly leave to others.
                self._shut = True
                with self._condition:
                    interrupts.wait_for(
                        self._condition, lambda: not self._inside and not self._owed
                    )
                yield
            finally:
                with self._condition:
                    self._shut = False
                    self._round += 1
                    self._owed += self._queued
                    self._condition.notify_all()
                self._writers.release()

    def left(self, thread: int) -> None:
        """A reader that was let in by that thread is not inside any more."""
        with self._condition:
            self._inside[thread] -= 1
            if not self._inside[thread]:
                del self._inside[thread]
            self._condition.notify_all()

    def refuse_reader(self) -> None:
        """Raise LedgerError if this thread holds a lease: it would wait for itself for ever."""
        if self._inside.get(threading.get_ident()):
            raise LedgerError("this thread holds a lease of the live weights; leave it to update")

    def _is_taken(self) -> bool:
        return self._one_by_one and bool(self._inside)

    def _wait(self) -> None:
        """Wait for the writer inside, and for the reader where they go one by one.

        Who waits for a reader is owed an entry before the next writer's, as who waited for a writer
        is.
        """
        if self._shut:
            came = self._round
            self._queued += 1
            try:
                interrupts.wait_for(self._condition, lambda: self._round != came)
            except BaseException:
                self._owed -= self._round != came
                raise
            finally:
                self._queued -= 1
        else:
            self._owed += 1
        self._waiting += 1
        try:
            interrupts.wait_for(self._condition, lambda: not self._is_taken())
        finally:
            self._waiting -= 1
            self._owed -= 1


class _Entry:
    """A reader on its way through a gate, who leaves it at the latest when this goes: one that is
    interrupted as it is about to leave does not stay inside."""

    inside = False

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.thread = threading.get_ident()

    def leave(self) -> None:
        with interrupts.held:
            if self.inside:
                self.inside = False
                self._gate.left(self.thread)

    def __del__(self) -> None:
        if self.inside:
            self.leave()
