"""A SQLite file without the write-ahead log that belongs to it.

Whoever copies a ledger's file alone while it is in use gets an older state or, of a young one, no
tables at all: they are in the log still. That looks like a new database, and must not be made one.
A file marks that a database is being made, so that a start which was killed there can go on.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from weightledger.ledger import permissions

_MARK = "-new"
_LOG = "-wal"
_VERSIONS = slice(18, 20)  # of the file format, for writing and reading
_WITH_LOG = b"\x02\x02"  # https://sqlite.org/fileformat.html#file_format_version_numbers


@contextlib.contextmanager
def making(file: Path) -> Iterator[None]:
    """Mark a database as one that is being made, until its tables are there."""
    with contextlib.suppress(OSError):  # SQLite says what is wrong, in its own words
        permissions.make_file(file.with_name(file.name + _MARK))
        _sync(file.parent)
    yield
    made(file)


def made(file: Path) -> None:
    """Take away the mark that a process which was killed may have left."""
    with contextlib.suppress(OSError):
        file.with_name(file.name + _MARK).unlink(missing_ok=True)


def is_torn(file: Path) -> bool:
    """Whether a database without tables had a write-ahead log that is not here."""
    beside = {suffix: file.with_name(file.name + suffix) for suffix in (_MARK, _LOG)}
    try:
        with file.open("rb") as opened:
            versions = opened.read(_VERSIONS.stop)[_VERSIONS]
        logged = beside[_LOG].exists() and beside[_LOG].stat().st_size > 0
    except OSError:
        return False
    if versions != _WITH_LOG or logged:
        return False
    # At last: whoever began to make it meanwhile has marked that before anything can be seen of it.
    return not beside[_MARK].exists()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
