"""Files and folders that only their owner may read, whatever the umask is."""

import contextlib
import logging
import os
import stat
from pathlib import Path

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700

_OTHERS = stat.S_IRWXG | stat.S_IRWXO

logger = logging.getLogger(__name__)


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it, for its owner only; one that exists stays as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


def require_private(folder: Path) -> None:
    """Raise PermissionError unless a folder is this user's, and nobody else's to enter."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & _OTHERS:
        raise PermissionError(f"{folder} is not a folder of this user's alone")


def make_file(path: Path) -> None:
    """Make an empty file for its owner only, unless it exists."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))


def tighten(folder: Path) -> None:
    """Take a folder, and the files right in it, from everyone but their owner.

    What is deeper is out of others' reach with that. What belongs to somebody else is said in the
    log and stays as it is.
    """
    for path in (folder, *folder.iterdir()):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode) or not found.st_mode & _OTHERS:
            continue
        try:
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
        except PermissionError:
            logger.warning("others may read %s, and its owner is somebody else", path)
        else:
            logger.info("others could read %s; now only its owner can", path)


def warn_if_open(path: Path) -> None:
    """Say in the log that others can read a file (or folder), if they can."""
    with contextlib.suppress(OSError):
        modes = path.stat().st_mode, path.parent.stat().st_mode
        if all(mode & _OTHERS for mode in modes):
            logger.warning("others may read %s: chmod go= %s", path, path)
