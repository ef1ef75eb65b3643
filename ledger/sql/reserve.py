"""Room kept beside a SQLite database, for when its disk is full.

SQLite cannot even read a database with a write-ahead log where no room is left for the log's index,
and the collector, which makes room, writes what it drops to the log. So whoever writes keeps a file
beside the database that holds nothing but its place. Some of it is let go of to open the database,
more to collect and to withdraw a commit that failed, the rest to checkpoint. Whoever let go of it
takes it back before he is done.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

SIZE_BYTES = 1024 * 1024

# How much of it gives way to each: to open takes 32 KiB for the log's index, and some for files
# that say who is there; a checkpoint, which gives the log's room back, what the database has grown
# by. Of what is left, since whoever was killed has taken nothing back.
TO_OPEN = 256 * 1024
TO_WRITE = 512 * 1024
TO_CHECKPOINT = SIZE_BYTES

_PLENTY_BYTES = 16 * SIZE_BYTES  # it is made where there is so much
_allocate = getattr(os, "posix_fallocate", None)  # elsewhere there is no reserve


class Reserve:
    """The file FILE-reserve; safe to share between threads and processes."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._path = f"{database}-reserve"
        self._lent = False

    def exists(self) -> bool:
        """Whether there is one to let go of."""
        return os.path.exists(self._path)

    def keep(self) -> None:
        """Make it, where there is plenty of room."""
        with contextlib.suppress(OSError):  # a folder that cannot be written to
            if self._room() >= _PLENTY_BYTES:
                with self._opened(os.O_CREAT) as descriptor:
                    _lengthen(descriptor, SIZE_BYTES)

    def take_back(self) -> None:
        """Keep again what was let go of here, as far as there is room."""
        if self._lent:
            with contextlib.suppress(OSError), self._opened() as descriptor:
                size = os.fstat(descriptor).st_size
                _lengthen(descriptor, min(size + self._room(), SIZE_BYTES))

    def let_go(self, most: int) -> bool:
        """Make room by so many bytes, as far as they are there; False when none is left."""
        try:
            with self._opened() as descriptor:
                size = os.fstat(descriptor).st_size
                if not size:
                    return False
                os.ftruncate(descriptor, max(size - most, 0))
        except OSError:
            return False
        self._lent = True
        logger.warning("the disk is full: %s gives way by %d bytes", self._path, min(size, most))
        return True

    @contextlib.contextmanager
    def _opened(self, flags: int = 0) -> Iterator[int]:
        mode = self._database.stat().st_mode & 0o666
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | flags, mode)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _room(self) -> int:
        left = os.statvfs(self._database.parent)
        return left.f_bavail * left.f_frsize


def _lengthen(descriptor: int, length: int) -> None:
    size = os.fstat(descriptor).st_size
    if _allocate is None or size >= length:
        return
    try:
        _allocate(descriptor, 0, length)
    except OSError:
        os.ftruncate(descriptor, size)
        raise
