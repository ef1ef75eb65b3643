"""Where tests keep files that no crash of the machine has to leave whole: in memory."""

import contextlib
import shutil

import psutil

_MEMORY = "/dev/shm"
_ROOM_BYTES = 6 << 30  # servers and tests of all workers keep half of it there at a time


def folder() -> str | None:
    """A folder in memory that has room for all workers, if there is one."""
    with contextlib.suppress(OSError):
        room_bytes = min(shutil.disk_usage(_MEMORY).free, psutil.virtual_memory().available)
        if room_bytes > _ROOM_BYTES:
            return _MEMORY
    return None
