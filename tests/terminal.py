"""A command at a terminal of its own: what it prints, what is typed, how it leaves the terminal."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping

from tests.waiting import PATIENCE_S, until

# What would say another size or look than the terminal has.
HIDDEN = {"NO_COLOR", "LINES", "COLUMNS"}


class Terminal:
    """A process whose standard streams are a terminal of so many lines and columns."""

    def __init__(self, *args: str, lines: int, columns: int, env: Mapping[str, str]) -> None:
        self._own, theirs = pty.openpty()
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
        self.settings = termios.tcgetattr(theirs)
        self._theirs = theirs
        environment = {name: value for name, value in os.environ.items() if name not in HIDDEN}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "weightledger", *args],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm-256color", **env},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._read = bytearray()
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """Everything printed so far."""
        return self._read.decode(errors="replace")

    def wait_for(self, text: str) -> None:
        """Until this was printed."""
        until(lambda: text in self.output, f"{text!r} was not printed")

    def type(self, keys: str) -> None:
        os.write(self._own, keys.encode())

    def settings_now(self) -> list[object]:
        """The terminal's settings."""
        return termios.tcgetattr(self._theirs)

    def end(self) -> int:
        """Wait for the process; its status."""
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._theirs)
        self._reader.join(PATIENCE_S)
        os.close(self._own)

    def _drain(self) -> None:
        with contextlib.suppress(OSError):  # nobody has the other end any more
            while data := os.read(self._own, 65536):
                self._read += data


@contextlib.contextmanager
def at_terminal(
    *args: str, lines: int = 24, columns: int = 100, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """`weightledger ARGS` at a terminal, gone afterwards."""
    terminal = Terminal(*args, lines=lines, columns=columns, env=env or {})
    try:
        yield terminal
    finally:
        terminal.close()
