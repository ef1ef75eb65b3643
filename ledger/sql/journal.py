"""Keeping SQLite's write-ahead log short, and writers out of each other's way.

SQLite would checkpoint by itself, in whichever connection commits at page 1000. Here every
connection has that switched off. Writers of all processes take a lock of ours, one at a time, and
once the log is longer than LIMIT_BYTES a thread of the process whose commit made it so takes the
lock, too, and checkpoints: nobody writes at that moment, so all of the log is copied, readers that
come afterwards do not need it, and the next writer starts it over. The commit does not wait for
that, unless the log has grown by half of that again before the thread got the lock: then whoever
has committed checkpoints on the spot, so writers that leave no gap do not let it grow. A reader
that is under way puts that off; where some reader always is, the log would grow for ever, so once
it is PATIENT_BYTES longer than it was last cut to, whoever has the lock waits for those who read:
as nothing is written, who comes meanwhile is not in the way.

The lock is also what makes a library with the WAL-reset fault safe (`ledger.sql.sqlite_driver`): no
two of our processes write or checkpoint at once.
"""

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weightledger.ledger import interrupts
from weightledger.ledger.errors import (
    StorageBusy,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from weightledger.ledger.sql.backend import Execute
from weightledger.ledger.sql.hold import DatabaseHold
from weightledger.ledger.sql.reserve import TO_CHECKPOINT, TO_WRITE, Reserve

logger = logging.getLogger(__name__)

LIMIT_BYTES = 8 * 1024 * 1024
PATIENT_BYTES = 4 * LIMIT_BYTES

_PATIENCE_MS = 1000
_WAIT_MS = 20

_POLL_S = 0.0005
# How long the thread waits for the lock: where others have it so long, theirs are the commits that
# see to the log.
_ASIDE_S = 0.2


def pragmas() -> tuple[str, ...]:
    """What every connection is told: never to checkpoint, and what to cut a restarted log to."""
    return ("PRAGMA wal_autocheckpoint = 0", f"PRAGMA journal_size_limit = {LIMIT_BYTES}")


class WriteAheadJournal:
    """The write-ahead log of one database file; safe to share between threads.

    FILE-writer is the file that is locked; it is empty, and the lock goes with its holder.
    """

    def __init__(self, database: Path, connect: Callable[[], Any]) -> None:
        """`connect` gives a connection of the database's pool."""
        self._database = database
        self._connect = connect
        self._lock_file = f"{database}-writer"
        self._log = f"{database}-wal"
        self._ours = threading.Lock()
        self._descriptor: int | None = None
        self._due = LIMIT_BYTES
        self._overdue: int | None = None
        self._longest = 0  # since it was started over last
        self._wait_from = PATIENT_BYTES
        self._aside: threading.Thread | None = None
        self._closing = False
        self._hold = DatabaseHold(database)
        self.reserve = Reserve(database)
        self._reserve_kept = False

    def connected(self) -> None:
        """After a connection was opened."""
        if not self._hold.complete:
            self._hold.take()

    def writing(self, patience_s: float) -> "_Writing":
        """While a transaction writes, commits and checkpoints; StorageBusy if others take long."""
        return _Writing(self, patience_s)

    def acquire(self, patience_s: float) -> None:
        """Hold the lock, against threads and processes; StorageBusy if others take long."""
        until = time.monotonic() + patience_s
        while not self._ours.acquire(timeout=min(patience_s, interrupts.LOOK_UP_S)):
            if time.monotonic() > until:
                raise self._busy(patience_s)
            interrupts.handle()
        try:
            self.connected()  # a file that was made meanwhile
            self.require_in_place()
            descriptor = self._opened()
            while descriptor is not None and not _locked(descriptor):
                if time.monotonic() > until:
                    raise self._busy(patience_s)
                interrupts.handle()
                time.sleep(_POLL_S)
            if not self._reserve_kept:
                self._reserve_kept = True
                self.reserve.keep()
        except BaseException:
            self._ours.release()
            raise

    def require_in_place(self) -> None:
        """Raise StorageError where the database has been moved, removed or replaced: what is
        written would be there until the end of this process, and for nobody else."""
        if self._hold.displaced():
            raise StorageError(
                f"{self._database} was moved, removed or replaced while it was in use: start again"
            )

    def release(self) -> None:
        """Let it go."""
        try:
            if self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        finally:
            self._ours.release()

    def committed(self, execute: Execute) -> None:
        """After a commit, while `writing`: have it checkpointed if the log has grown long."""
        size = self._size()
        if size is None:
            logger.error(
                "%s was removed while the database was in use; each change is put into the database"
                " at once from now on. Start again soon: others may not see them until then",
                self._log,
            )
            execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            return
        if size <= LIMIT_BYTES or size < self._longest:  # it was started over
            self._due, self._overdue, self._longest = LIMIT_BYTES, None, 0
            self._wait_from = max(PATIENT_BYTES, size + PATIENT_BYTES // 2)
        self._longest = max(size, self._longest)
        if size > self._wait_from:
            _checkpoint_after_readers(execute)
            left = self._size() or 0
            self._wait_from = left + PATIENT_BYTES  # not at once where one takes long
        elif size > self._due:
            if self._overdue is None:
                self._overdue = size + LIMIT_BYTES // 2
            if size > self._overdue or not self._begins_aside():
                self._shorten(execute)

    def full(self, execute: Execute) -> None:
        """After a transaction found no room, while `writing`: put the log into the database, and
        give its room back, which the next one may do with.

        The database may have to grow for that, so room is made first.
        """
        if self._size():
            self.reserve.let_go(TO_CHECKPOINT)
            try:
                _checkpoint_after_readers(execute)
            finally:
                self.reserve.take_back()

    def give_way(self) -> bool:
        """Let go of room that is kept for a full disk; False when none is left."""
        return self.reserve.let_go(TO_WRITE)

    def take_back(self) -> None:
        """Keep it again."""
        self.reserve.take_back()

    def let_go(self) -> None:
        """Before the connections are closed."""
        with self._ours:
            self._closing = True
            aside = self._aside
        if aside is not None:
            aside.join()
        self._hold.let_go()

    def close(self) -> None:
        """Give the files back, after the connections were closed."""
        self._hold.close()
        self.reserve.take_back()
        with self._ours:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def forked(self) -> None:
        """In a fork: the lock is the other process's alone, and goes when that dies."""
        self._hold.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _begins_aside(self) -> bool:
        """Have a thread checkpoint as soon as the lock is free; False where that cannot be."""
        if self._closing:
            return False
        if self._aside is None or not self._aside.is_alive():
            aside = threading.Thread(target=self._shorten_aside, name="ledger-checkpoint")
            try:
                aside.start()
            except RuntimeError:  # the process is ending, or has as many threads as it may
                return False
            self._aside = aside
        return True

    def _shorten_aside(self) -> None:
        """Checkpoint on a connection of its own, with the lock that every writer takes."""
        try:
            pooled = self._connect()
            try:
                with self.writing(_ASIDE_S):
                    if not self._closing and (self._size() or 0) > self._due:
                        self._shorten(pooled.driver_connection.execute)
            finally:
                pooled.close()
        except StorageBusy:
            logger.debug("the journal of %s is left to those who write", self._database)
        except Exception as error:  # noqa: BLE001 - nobody waits for it: it is told here
            logger.error("the journal of %s could not be shortened: %s", self._database, error)

    def _shorten(self, execute: Execute) -> None:
        execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        # The next writer starts it over, unless a reader holds that up.
        self._due, self._overdue = (self._size() or 0) + LIMIT_BYTES // 2, None

    def _opened(self) -> int | None:
        """The file to lock; None where nothing can be written, which the database says better."""
        if self._descriptor is None:
            try:
                mode = self._database.stat().st_mode & 0o666
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._descriptor = os.open(self._lock_file, flags, mode)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise StorageUnavailable(
                        f"{self._lock_file} cannot be locked: this process has as many files open"
                        " as it may (ulimit -n)"
                    ) from error
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise StorageFull(
                        f"no space is left for {self._lock_file}; nothing was recorded"
                    ) from error
                return None
        return self._descriptor

    def _size(self) -> int | None:
        """Of the log in bytes; None where there is none. An empty one was not written to yet.

        Where nobody can look, as when as many files are open as may be, what it was last.
        """
        # Not by `stat`: it asks for the time of change, too, so Linux (6.13 and later) gives the
        # next write one of its own, which the next commit then has to sync as well.
        try:
            log = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError:
            return self._longest
        try:
            return os.lseek(log, 0, os.SEEK_END)
        finally:
            os.close(log)

    def _busy(self, patience_s: float) -> StorageBusy:
        return StorageBusy(
            f"{self._database} stayed locked by another writer for {patience_s:.0f} s"
        )


class _Writing:
    """Holds a journal's lock in its block; a class, because a generator costs as much again."""

    __slots__ = ("_journal", "_patience_s")

    def __init__(self, journal: WriteAheadJournal, patience_s: float) -> None:
        self._journal = journal
        self._patience_s = patience_s

    def __enter__(self) -> None:
        self._journal.acquire(self._patience_s)

    def __exit__(self, *_: object) -> None:
        self._journal.release()


def _checkpoint_after_readers(execute: Execute) -> None:
    """Copy all of the log and have no reader need it, waiting a little for those who do.

    By many short waits: in one, SQLite waits for a reader's place in the index to be free, also
    when those who have it by now need nothing of the log, and comes to no end where they take
    turns; and for another that checkpoints or recovers it does not wait at all.
    """
    (patience_ms,) = execute("PRAGMA busy_timeout").fetchone()
    until = time.monotonic() + _PATIENCE_MS / 1000
    execute(f"PRAGMA busy_timeout = {_WAIT_MS}").fetchone()
    try:
        while execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() > until:
                logger.info("the log cannot be cut yet: somebody has read for long")
                break
            time.sleep(_POLL_S)
    finally:
        execute(f"PRAGMA busy_timeout = {patience_ms}").fetchone()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
