"""The data folder: one server at a time, and who it is.

The lock is the operating system's, so it goes when its holder dies, however that happens. In the
file stands who holds it, for the message to the second server.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from weightledger.ledger import permissions
from weightledger.ledger.errors import LedgerInUse, StorageError
from weightledger.ledger.sql.presence import lock, locked_by

_LOCK_FILE = "serve.lock"


@dataclass(frozen=True, slots=True)
class Holder:
    """The server that holds a data folder."""

    pid: int
    url: str


@contextlib.contextmanager
def hold(folder: Path, url: str) -> Iterator[None]:
    """Hold the folder while serving at `url`; LedgerInUse names the holder if there is one."""
    with contextlib.ExitStack() as held:
        try:
            permissions.make_folder(folder)
            permissions.tighten(folder)
            text = json.dumps(asdict(Holder(os.getpid(), url)))
            held.enter_context(lock(folder / _LOCK_FILE, text))
        except BlockingIOError:
            other = holder(folder)
            who = f"process {other.pid} at {other.url}" if other else "another process"
            raise LedgerInUse(f"data folder {folder} is held by {who}") from None
        except OSError as error:
            raise StorageError(f"cannot use data folder {folder}: {error}") from error
        yield


def holder(folder: Path) -> Holder | None:
    """The server that holds the folder right now, if one does."""
    text = locked_by(folder / _LOCK_FILE)
    try:
        return None if text is None else Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None
