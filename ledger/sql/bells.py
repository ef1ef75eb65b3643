"""Waking a writer of this machine that waits: each has a socket, which another sends nothing to.

They are in a folder of the user's for what is temporary, so nobody else's processes can ring, and
who is in another container cannot. Whoever waits looks now and then, bell or not.
"""

import contextlib
import os
import select
import socket
import tempfile
from pathlib import Path

from weightledger.ledger import interrupts, permissions


def folder() -> Path:
    """This user's folder for what is temporary, which nobody else can enter. Raises OSError."""
    found = Path(tempfile.gettempdir()) / f"weightledger-{os.getuid()}"
    permissions.make_folder(found)
    permissions.require_private(found)
    return found


class Bells:
    """Bells by number, of which one is ours once it is hung. Used by one thread at a time."""

    def __init__(self, name: str) -> None:
        """`name` is that of all of them, without a slash. Raises OSError."""
        self._path = str(folder() / name)
        self._socket = _new()
        self._own: str | None = None
        self._poll = select.poll()

    def hang(self, number: int) -> None:
        """Have ours be the one with a number that nobody else has. Raises OSError."""
        path = self._of(number)
        with contextlib.suppress(FileNotFoundError):  # of one that was killed
            os.unlink(path)
        self._socket.bind(path)
        self._own = path
        self._poll.register(self._socket, select.POLLIN)

    def ring(self, number: int) -> None:
        """Wake whoever has that one, or will wait for it next; nobody where there is none."""
        with contextlib.suppress(OSError):
            self._socket.sendto(b"", self._of(number))

    def wait(self, timeout_s: float) -> bool:
        """Whether ours has rung by then, since it was last waited for or silenced."""
        self._poll.poll(timeout_s * 1000)
        interrupts.handle()
        return self.silence()

    def silence(self) -> bool:
        """Whether ours has rung; it has not any more."""
        rang = False
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1)
                rang = True
        return rang

    def close(self) -> None:
        """Take ours down; while nobody else has its number."""
        if self._own is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._own)
        self.forked()

    def forked(self) -> None:
        """In a fork: it is the other process's."""
        self._own = None
        self._socket.close()

    def _of(self, number: int) -> str:
        return f"{self._path}-{number}"


def _new() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)
    return made
