"""A gate for weights that are written where they lie: many readers or one writer.

A writer waits for the readers inside; readers that come meanwhile wait for it. Those get in before
the next writer, so neither side starves.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

from weightledger.ledger.errors import LedgerError


class Gate:
    """Readers share it, a writer has it alone. Readers may nest; a writer may not be a reader."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._writers = threading.Lock()
        self._inside: Counter[int] = Counter()
        self._shut = False
        self._round = 0
        self._queued = 0
        self._owed = 0

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """Share the gate with other readers; may be left from another thread."""
        thread = threading.get_ident()
        with self._condition:
            # Waiting in a thread that is inside already would wait for itself.
            if self._shut and not self._inside[thread]:
                self._queue()
            self._inside[thread] += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside[thread] -= 1
                if not self._inside[thread]:
                    del self._inside[thread]
                self._condition.notify_all()

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """Have the gate alone. Raises LedgerError in a thread that is inside as a reader."""
        self.refuse_reader()
        with self._writers:
            try:
                # Before asking for the lock, which readers that keep coming hardly leave to others.
                self._shut = True
                with self._condition:
                    self._condition.wait_for(lambda: not self._inside and not self._owed)
                yield
            finally:
                with self._condition:
                    self._shut = False
                    self._round += 1
                    self._owed += self._queued
                    self._condition.notify_all()

    def refuse_reader(self) -> None:
        """Raise LedgerError if this thread holds a lease: it would wait for itself for ever."""
        if self._inside.get(threading.get_ident()):
            raise LedgerError("this thread holds a lease of the live weights; leave it to update")

    def _queue(self) -> None:
        came = self._round
        self._queued += 1
        try:
            self._condition.wait_for(lambda: self._round != came)
        finally:
            self._queued -= 1
            if self._round != came:
                self._owed -= 1
