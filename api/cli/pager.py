"""Long output on a terminal goes through a pager, as git's does."""

import contextlib
import io
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

# What git gives less: end at once where one screen is enough, keep colours, leave the screen as it
# is.
_LESS = "FRX"


class _Held(io.StringIO):
    """Output that is on its way to a terminal."""

    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def paged(wanted: bool = True) -> Iterator[None]:
    """Show what is printed in the block through $PAGER (less by default), where that is of use.

    Where standard output is no terminal, nothing is held back; nor where all fits on the screen,
    or there is no pager: `PAGER=cat` and an empty one are none.
    """
    if not wanted or not sys.stdout.isatty():
        yield
        return
    held = _Held()
    try:
        with contextlib.redirect_stdout(held):
            yield
    finally:
        _show(held.getvalue())


def _show(text: str) -> None:
    command = shlex.split(os.environ.get("PAGER", "less"))
    fits = text.count("\n") < shutil.get_terminal_size().lines
    if fits or not command or command == ["cat"] or shutil.which(command[0]) is None:
        sys.stdout.write(text)
        return
    pager = subprocess.Popen(
        command, stdin=subprocess.PIPE, text=True, env={"LESS": _LESS, **os.environ}
    )
    assert pager.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # who has seen enough leaves
            pager.stdin.write(text)
        with contextlib.suppress(BrokenPipeError):
            pager.stdin.close()
    finally:
        while pager.poll() is None:
            with contextlib.suppress(KeyboardInterrupt):  # is the pager's
                pager.wait()
