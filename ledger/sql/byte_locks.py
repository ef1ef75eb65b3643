"""Locks on bytes of a file, which need not be there, each held by one open file.

The operating system's locks of open file descriptions: they go when the last descriptor of theirs
is closed, by its process's end too. Where there are none of this kind, those that belong to a
process have to do: two opened files of one process do not shut each other out then.
"""

import fcntl
import os
import struct

_SET = getattr(fcntl, "F_OFD_SETLK", None)
_SET_WAITING = getattr(fcntl, "F_OFD_SETLKW", None)
_GET = getattr(fcntl, "F_OFD_GETLK", None)
_FLOCK = struct.Struct("hhqqi0q")  # struct flock: type, whence, start, length, process

OF_OPEN_FILES = _SET is not None
"""Whether they are held by an open file, and not by a whole process."""


def share(descriptor: int, first: int, count: int) -> None:
    """Hold bytes as others may, too; BlockingIOError where somebody has them to himself."""
    _lock(descriptor, fcntl.F_RDLCK, fcntl.LOCK_SH | fcntl.LOCK_NB, first, count)


def take(descriptor: int, first: int, count: int) -> bool:
    """Have bytes to oneself; False where somebody else holds one of them."""
    try:
        _lock(descriptor, fcntl.F_WRLCK, fcntl.LOCK_EX | fcntl.LOCK_NB, first, count)
    except (BlockingIOError, PermissionError):  # either says that it is held
        return False
    return True


def wait_for(descriptor: int, first: int, count: int) -> None:
    """The same, but wait until nobody else holds one of them."""
    _lock(descriptor, fcntl.F_WRLCK, fcntl.LOCK_EX, first, count)


def let_go(descriptor: int, first: int = 0, count: int = 0) -> None:
    """Hold bytes no longer; a count of 0 is all from the first one on."""
    _lock(descriptor, fcntl.F_UNLCK, fcntl.LOCK_UN, first, count)


def held_by_others(descriptor: int, first: int, count: int) -> range | None:
    """Bytes that keep one from having these to oneself: one of the locks, or None.

    None, too, where the operating system does not tell.
    """
    if _GET is None:
        return None
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, first, count, 0)
    kind, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(descriptor, _GET, asked))
    return None if kind == fcntl.F_UNLCK else range(start, start + length)


def _lock(descriptor: int, kind: int, of_process: int, first: int, count: int) -> None:
    command = _SET if of_process & (fcntl.LOCK_NB | fcntl.LOCK_UN) else _SET_WAITING
    if command is None:
        fcntl.lockf(descriptor, of_process, count, first)
    else:
        fcntl.fcntl(descriptor, command, _FLOCK.pack(kind, os.SEEK_SET, first, count, 0))
