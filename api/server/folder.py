"""The data folder: one server at a time, and who it is.

The lock is the operating system's, so it goes when its holder dies, however that happens. Beside it
stands who holds it, for the message to the second server and for commands that look for the first.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from weightledger.ledger import permissions
from weightledger.ledger.errors import LedgerInUse, StorageError

_LOCK_FILE = "serve.lock"


@dataclass(frozen=True, slots=True)
class Holder:
    """The server that holds a data folder."""

    pid: int
    url: str


@contextlib.contextmanager
def hold(folder: Path, url: str) -> Iterator[None]:
    """Hold the folder while serving at `url`; LedgerInUse names the holder if there is one."""
    try:
        permissions.make_folder(folder)
        permissions.tighten(folder)
        lock = folder / _LOCK_FILE
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, permissions.PRIVATE_FILE)
    except OSError as error:
        raise StorageError(f"cannot use data folder {folder}: {error}") from error
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(file.read())
            who = f"process {holder.pid} at {holder.url}" if holder else "another process"
            raise LedgerInUse(f"data folder {folder} is held by {who}") from None
        file.truncate(0)
        file.write(json.dumps(asdict(Holder(os.getpid(), url))))
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate(0)


def holder(folder: Path) -> Holder | None:
    """The server that holds the folder right now, if one does."""
    try:
        with (folder / _LOCK_FILE).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read(file.read())
    except FileNotFoundError:
        return None
    return None


def _read(text: str) -> Holder | None:
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None
