"""A backup made a ledger again: one that is whole, or none.

A new SQLite database has its name only once it is verified. A database that is there already (on
a PostgreSQL server, or one whose tables were made) gets the rows in one transaction, of a backup
that was verified before; should what came to be there not verify, its tables are made anew, empty.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from weightledger.ledger.backup import (
    FILE,
    PARTIAL,
    Copied,
    Progress,
    copied,
    put_blobs,
    remove_beside,
    require_whole,
    settle,
    sync,
)
from weightledger.ledger.config import sqlite_url
from weightledger.ledger.errors import CorruptLedger, InvalidRequest, NotFound, StorageError
from weightledger.ledger.secrets import mask
from weightledger.ledger.sql import sqlite
from weightledger.ledger.sql.database import Database, parse_url
from weightledger.ledger.sql.schema import open_schema, start_over


def restore(
    folder: Path,
    url: str,
    *,
    blob_url: str | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> Copied:
    """Make a new ledger at a database URL of the backup in a folder.

    Its blobs go to `blob_url`, or into the database. Raises NotFound where there is no backup,
    InvalidRequest for a database that holds a ledger already, and with `check` CorruptLedger for a
    backup that does not verify: then there is no ledger at the URL.
    """
    told = progress or (lambda what, done: None)
    if not (folder / FILE).is_file():
        raise NotFound(f"there is no backup in {folder}: it would have a {FILE}")
    target = parse_url(url)
    file = sqlite.file_of(target) if target.get_backend_name() == "sqlite" else None
    if file is not None and not file.exists():
        with _new(file) as partial, _explained(folder, url):
            made = _rows(folder, sqlite_url(partial), told)
            if check:
                require_whole(sqlite_url(partial), told)
            if blob_url is not None:
                put_blobs(sqlite_url(partial), blob_url, progress=told)
        settle(url)
        return made
    if check:
        with _explained(folder, url):
            require_whole(sqlite_url(folder / FILE), told)
    made = _rows(folder, url, told)
    if check:
        with _explained(folder, url):
            try:
                require_whole(url, told)
            except CorruptLedger:
                with contextlib.closing(Database.connect(url, create=False)) as database:
                    start_over(database, events=made.events)
                raise
    if blob_url is not None:
        put_blobs(url, blob_url, progress=told)
    settle(url)
    return made


def _rows(folder: Path, url: str, told: Progress) -> Copied:
    source_url = sqlite_url(folder / FILE)
    with contextlib.closing(Database.connect(source_url, create=False)) as source:
        open_schema(source, upgrade=False)
        return copied(source, url, told)


@contextlib.contextmanager
def _new(file: Path) -> Iterator[Path]:
    """A SQLite file to make; after the block, unless it fails, it has its name and is durable."""
    partial = file.with_name(file.name + PARTIAL)
    try:
        _remove(partial)  # of a run that was killed
        yield partial
        os.link(partial, file)  # which does not take the place of one that came meanwhile
        sync(file.parent)
    except FileExistsError:
        raise InvalidRequest(f"{file} is there meanwhile: choose a new database") from None
    except OSError as error:
        raise StorageError(f"the ledger cannot be written to {file}: {error}") from error
    finally:
        _remove(partial)


def _remove(partial: Path) -> None:
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
        remove_beside(partial)


@contextlib.contextmanager
def _explained(folder: Path, url: str) -> Iterator[None]:
    """Say of a copy that does not verify where it came from, and that it is not there."""
    try:
        yield
    except CorruptLedger as error:
        raise CorruptLedger(
            f"nothing was restored to {mask(url)}: {error}. `weightledger verify --data-dir "
            f"{folder}` tells what is wrong with the backup itself",
            seq=error.seq,
        ) from error
