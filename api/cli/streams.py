"""The command's standard streams: closed ones stand open, and what cannot be written is said."""

import codecs
import errno
import io
import os
import sys

_NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def open_closed() -> None:
    """Open streams that this process was started without, to nowhere.

    Else the next file that is opened, such as the database, would be one of them, and what a
    library or a child prints would be written into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def escape_what_has_no_form() -> None:
    """Have characters that the output's encoding does not know stand there as escapes.

    A terminal that is not UTF-8 has no arrow and no Δ, which is no reason to show nothing.
    """
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and codecs.lookup(out.encoding).name != "utf-8":
        out.reconfigure(errors="backslashreplace")


def not_written(error: OSError) -> str | None:
    """What to say of an error that standard output gave; None for any other.

    Files that commands write say themselves what is wrong with them, by their names.
    """
    if error.errno not in _NOT_WRITTEN or error.filename is not None:
        return None
    return f"the output could not be written whole: {error.strerror}"


def forget_output() -> None:
    """Have what is left in the buffer go nowhere, where it failed once already."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
