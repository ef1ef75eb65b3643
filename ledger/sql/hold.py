"""Keeps SQLite's write-ahead log from being taken away while this process has its database open.

SQLite's own locks are POSIX locks, which belong to a process: whatever descriptor of the file is
closed in it, all of them are gone. A second copy of the library does that (Python's `sqlite3`,
which pandas and notebooks use, beside the one that `ledger.sql.sqlite_driver` chooses), and so does
any other code that opens and closes the file. The next connection that closes, in whatever process,
then takes itself for the last one and removes the log, and what is committed to it afterwards is
lost (https://sqlite.org/howtocorrupt.html, "Multiple copies of SQLite linked into the same
application").

So beside SQLite's locks this process holds two of open file descriptions, which go when their own
descriptor does: on the bytes that say that the database is in use, and on the one that says so of
the log's index. They are those that a reader of SQLite takes, and keep nobody from reading or
writing.
"""

import contextlib
import os
from pathlib import Path

from weightledger.ledger.sql import byte_locks

# https://sqlite.org/src/file/src/os.h and os_unix.c: a reader's bytes of a database, and the byte
# of the index that says that it is in use (the "dead man switch").
_SHARED_FIRST, _SHARED_BYTES = 0x40000002, 510
_INDEX_IN_USE = 128
_MODE_AT, _HAS_LOG = 18, b"\2\2"  # https://sqlite.org/fileformat2.html, the database header

# Elsewhere SQLite's own locks have to do: a process would lose these as easily as those.
_TAKES_NONE = not byte_locks.OF_OPEN_FILES


class DatabaseHold:
    """This process's hold on a database file and the index of its log."""

    def __init__(self, database: Path) -> None:
        self._database = _Range(str(database), _SHARED_FIRST, _SHARED_BYTES)
        self._index = _Range(f"{database}-shm", _INDEX_IN_USE, 1)
        self.complete = _TAKES_NONE

    def take(self) -> None:
        """Hold what is there by now: the index is made by the first connection that reads.

        A file that has no log yet is left alone: to give it one a connection needs it for itself.
        """
        if self._database.read(_MODE_AT, len(_HAS_LOG)) == _HAS_LOG:
            self.complete = self._database.take() and self._index.take()

    def let_go(self) -> None:
        """Before the last connection closes: it is to remove the log."""
        self._index.let_go()
        self._database.let_go()

    def displaced(self) -> bool:
        """Whether another file has the database's name by now, or none has."""
        return self._database.displaced()

    def close(self) -> None:
        """Give the descriptors back, once no connection is left that would lose its locks."""
        self._index.close()
        self._database.close()
        self.complete = _TAKES_NONE


class _Range:
    """Bytes of a file, held as a reader holds them."""

    def __init__(self, path: str, first: int, count: int) -> None:
        self._path, self._first, self._count = path, first, count
        self._descriptor: int | None = None
        self._held = False
        self._identity: tuple[int, int] | None = None

    def displaced(self) -> bool:
        if self._descriptor is None:
            return False
        if self._identity is None:
            self._identity = _identity(os.fstat(self._descriptor))
        try:
            return _identity(os.stat(self._path)) != self._identity
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # whoever may not look is told more by SQLite
            return False

    def read(self, first: int, count: int) -> bytes:
        if not self._opened() or self._descriptor is None:
            return b""
        return os.pread(self._descriptor, count, first)

    def take(self) -> bool:
        if _TAKES_NONE or self._held or not self._opened() or self._descriptor is None:
            return self._held
        with contextlib.suppress(OSError):  # somebody has it to himself for a moment
            byte_locks.share(self._descriptor, self._first, self._count)
            self._held = True
        return self._held

    def let_go(self) -> None:
        if self._held and self._descriptor is not None:
            byte_locks.let_go(self._descriptor, self._first, self._count)
            self._held = False

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor, self._held, self._identity = None, False, None

    def _opened(self) -> bool:
        if self._descriptor is None:
            with contextlib.suppress(OSError):  # not there yet; SQLite says what else is wrong
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptor is not None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
