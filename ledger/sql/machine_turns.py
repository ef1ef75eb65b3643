"""Turns on PostgreSQL where several writers are on one machine: first among those, then among all.

The machine's turns are of a file as on SQLite (`file_turns`), in a folder of the user's for what is
temporary. While nobody from elsewhere writes, whoever has the machine's turn need not ask the
server for its lock before he works his event out: the statement that writes asks for it. And who
waits has his command carried out by whoever has the turn (`boxes`, `groups`), and asks the server
for nothing.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightledger.ledger import permissions
from weightledger.ledger.errors import LedgerError
from weightledger.ledger.sql.advisory_turns import AdvisoryLock
from weightledger.ledger.sql.bells import folder
from weightledger.ledger.sql.file_turns import FileLock
from weightledger.ledger.sql.turns import Meanwhile, Neighbours, News, Question, Statement

logger = logging.getLogger(__name__)

# After so many of the machine's turns between which nobody from elsewhere wrote, the server's lock
# is asked for by the statement that writes.
_UNDISTURBED = 2


class MachineLock:
    """`ledger.sql.turns.Lock` over both.

    The file's name has to be of this very log, whatever names and ports the server is reached by:
    what its writers leave to each other is recorded in the log of who carries it out. So the server
    is asked for it, with the first turn.
    """

    writes = True

    def __init__(self, model_id: int, everywhere: AdvisoryLock) -> None:
        self._model_id = model_id
        self._everywhere = everywhere
        self._file: FileLock | None = None
        self._ours = False  # the machine's turn
        self._given_up = False  # this machine has no turns
        self.condition = everywhere.condition
        self.deferring = False

    @property
    def _near(self) -> FileLock:
        """The lock among the writers of this user and machine; OSError where there is none."""
        if self._given_up:
            raise OSError("this machine has no turns")
        if self._file is None:
            try:
                self._file = FileLock(_private_file(self._everywhere.place()), self._model_id)
            except LedgerError as error:  # the next turn asks again
                raise OSError(str(error)) from error
            except OSError as error:
                self._given_up = True
                logger.debug("writers of this machine take no turns of their own: %s", error)
                raise
        return self._file

    def acquire(
        self,
        timeout_s: float,
        meanwhile: Meanwhile | None = None,
        question: Question | None = None,
    ) -> bool:
        """Whether it is held now; with the machine's turn held already, the other one as well."""
        if self._ours:
            return self._acquired(timeout_s, None)
        try:
            if not self._near.acquire(timeout_s, meanwhile):
                return False
            self._ours = True
            if self._near.told().undisturbed >= _UNDISTURBED:
                self.deferring = True
                return True
        except OSError as error:
            logger.debug("this machine's turns cannot be had: %s", error)
        return self._acquired(timeout_s, question)

    def _acquired(self, timeout_s: float, question: Question | None) -> bool:
        """Whether the lock among all is held now; if not, nothing is."""
        self.deferring = False
        got = False
        try:
            got = self._everywhere.acquire(timeout_s, None, question)
        finally:
            if not got:
                self._give_up()
        if got and self._ours:
            self._compare()
        return got

    def _compare(self) -> None:
        """Take note of whether anybody from elsewhere wrote since the machine's last turn."""
        try:
            left, head = self._near.head(), self._everywhere.head()
            before = self._near.told().undisturbed
            same = left is not None and left == head
            self._near.count(min(before + 1, _UNDISTURBED) if same else 0)
        except OSError as error:
            logger.debug("this machine's turns are not counted: %s", error)

    def news(self) -> News | None:
        """See `Lock.news`."""
        return None if self.deferring else self._everywhere.news()

    def write(self, statements: Sequence[Statement]) -> list[tuple[int, ...]]:
        """See `Lock.write`; the machine's turn goes on until it is let go."""
        return self._everywhere.write(statements)

    @property
    def connection(self) -> Any:
        """See `Lock.connection`."""
        return self._everywhere.connection

    def release(self, head: int | None) -> None:
        """Let go of both, as far as they are held."""
        self.deferring = False
        try:
            if self._everywhere.release(head) and self._ours and self._near.are_waiting():
                # The next one's statement asks for it: it would be lost, and the commands of others
                # with it, where the server is late.
                self._everywhere.settle()
        finally:
            if self._ours:
                self._ours = False
                self._near.release(head)

    def is_free(self) -> bool:
        """See `Lock.is_free`: whether no neighbour has a turn or waits for one."""
        return self._file is None or self._file.is_free()

    def settle(self) -> None:
        """See `Lock.settle`."""
        self._everywhere.settle()

    def head(self) -> int | None:
        """See `Lock.head`."""
        return self._near.head() if self.deferring else self._everywhere.head()

    def under_way(self) -> object:
        """See `Lock.under_way`."""
        near = None if self._file is None else self._file.under_way()
        return near, self._everywhere.under_way()

    def close(self) -> None:
        """See `Lock.close`."""
        self._ours = False
        if self._file is not None:
            self._file.close()
        self._everywhere.close()

    def forked(self) -> None:
        """See `Lock.forked`."""
        if self._file is not None:
            self._file.forked()
        self._everywhere.forked()

    def _give_up(self) -> None:
        if self._ours:
            self._ours = False
            self._near.release(None)

    @property
    def neighbours(self) -> Neighbours | None:
        """See `Lock.neighbours`."""
        return self._near if self._ours else None


def _private_file(place: bytes) -> Path:
    """A file for a place, in a folder that is this user's alone. Raises OSError."""
    file = folder() / hashlib.sha256(place).hexdigest()[:32]
    permissions.make_file(file)
    return file
