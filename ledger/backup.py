"""Copies of a whole ledger, taken while it is in use; and blobs moved elsewhere.

A backup is a folder with one SQLite database, `ledger.db`, whatever the ledger itself is kept in:
its rows as they were at one moment, and every blob they refer to. Nothing else belongs to it, so it
can be moved, read by every reading command, also where nothing can be written, and restored into
either kind of database (`restoring`).
"""

import contextlib
import glob
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from weightledger.ledger import interrupts, permissions
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.blobs import BlobStore
from weightledger.ledger.blobs.location import location_of, open_at, relocate
from weightledger.ledger.blobs.registry import get_opener
from weightledger.ledger.blobs.sql import SqlBlobs
from weightledger.ledger.blobs.tenants import Tenancy
from weightledger.ledger.config import sqlite_url
from weightledger.ledger.errors import CorruptLedger, InvalidRequest, StorageError
from weightledger.ledger.history.reader import History
from weightledger.ledger.retention import referenced
from weightledger.ledger.sql import tables
from weightledger.ledger.sql.bulk import insert_rows, pieces
from weightledger.ledger.sql.database import Database
from weightledger.ledger.sql.schema import open_schema
from weightledger.ledger.store.sql_store import SqlStore

logger = logging.getLogger(__name__)

FILE = "ledger.db"

Progress = Callable[[str, int], None]
"""Called with what is being done and how many are done."""

PARTIAL = ".partial"
_ROWS = 50  # written by one statement, payloads of up to 256 KiB among them
_ROWS_OF_PARTS = 1  # of up to 16 MiB


@dataclass(slots=True)
class Copied:
    """What was copied: models, events, and blobs that came from beside the database."""

    models: int = 0
    events: int = 0
    blobs: int = 0


def backup(
    url: str, folder: Path, *, check: bool = True, progress: Progress | None = None
) -> Copied:
    """Copy the ledger at a database URL into a new or empty folder, while it is in use.

    The copy is of one moment. It has its name only once it is whole and, with `check`, verified
    from the first event to the last: after any failure there is none. Raises InvalidRequest for a
    folder that holds something, CorruptLedger for a copy that does not verify.
    """
    told = progress or (lambda what, done: None)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidRequest(f"{folder} is not an empty folder: a backup needs one of its own")
    partial = folder.with_name(folder.name + PARTIAL)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(Database.connect(url, create=False)))
        open_schema(source, upgrade=False, guarded=False)
        try:
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
            permissions.make_folder(partial)
            made = copied(source, sqlite_url(partial / FILE), told)
            if check:
                require_whole(sqlite_url(partial / FILE), told)
            remove_beside(partial / FILE)
            sync(partial)
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()
            partial.rename(folder)
            sync(folder.parent)
        except OSError as error:
            raise StorageError(f"the backup cannot be written to {folder}: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return made


def move_blobs(url: str, blob_url: str | None, *, progress: Progress | None = None) -> int:
    """Keep a ledger's blobs at another place from now on; None is its own database.

    Gives how many were copied: those that are there already, because the folder was moved, are not
    asked for at the old place. Nobody may write meanwhile. What lies at the old place outside of
    the database stays for its owner to delete. Raises CorruptLedger, with nothing changed, when a
    blob is at neither place.
    """
    with contextlib.closing(Database.connect(url, create=False)) as database:
        open_schema(database, upgrade=False)
        old = open_at(old_url := location_of(database), database, create=False)
        copied = put_blobs(url, blob_url, progress=progress)
        new = open_at(location_of(database), database, create=False)
        if old_url is None:
            Tenancy(database, new).settle()
        else:
            Tenancy(database, new).take_over()
            try:
                Tenancy(database, old).leave()
            except StorageError as error:
                logger.warning("the note of this ledger stays at %s: %s", old_url, error)
    return copied


def put_blobs(url: str, blob_url: str | None, *, progress: Progress | None = None) -> int:
    """As `move_blobs`, but for the notes of whose blobs these are."""
    told = progress or (lambda what, done: None)
    new_url = None if blob_url is None else get_opener(blob_url).permanent(blob_url)
    copied = 0
    with contextlib.closing(Database.connect(url, create=False)) as database:
        open_schema(database, upgrade=False)
        old_url = location_of(database)
        if new_url == old_url:
            raise InvalidRequest(f"the blobs are in {old_url or 'the database'} already")
        old = open_at(old_url, database, create=False)
        new = open_at(new_url, database, create=True)
        heads: dict[str, int] | None = None
        with _histories(database, new, old) as histories:
            while heads != (now := {h.model: h.head().seq for h in histories}):
                heads = now
                copied += _copy_blobs(histories, old, new, told)
        relocate(database, new_url)
        if old_url is None:
            with database.write() as execute:
                execute("DELETE FROM blob_parts")
                execute("DELETE FROM blobs")
    return copied


def settle(url: str) -> None:
    """Note beside the blobs of a ledger that they are its own, too."""
    with contextlib.closing(SqlStore.open(url, upgrade=False)) as store:
        store.tenancy.settle()


def copied(source: Database, target_url: str, told: Progress) -> Copied:
    """Every row of one database into an empty one, in one transaction, and every blob with them."""
    made = Copied()
    with contextlib.closing(Database.connect(target_url)) as target:
        open_schema(target)
        with target.look() as execute:
            if execute("SELECT 1 FROM models LIMIT 1").fetchone() is not None:
                raise InvalidRequest(f"{target.name} holds a ledger already: choose a new database")
        with source.snapshot() as stream, target.write() as execute:
            for table in tables.metadata.sorted_tables:
                if table is tables.blob_location:
                    continue
                names = [column.name for column in table.columns]
                keys = ", ".join(column.name for column in table.primary_key)
                most = _ROWS_OF_PARTS if table is tables.blob_parts else _ROWS
                select = f"SELECT {', '.join(names)} FROM {table.name} ORDER BY {keys}"
                done = 0
                for piece in pieces(stream(select, most), most):
                    interrupts.handle()
                    insert_rows(execute, f"{table.name} ({', '.join(names)})", piece)
                    done += len(piece)
                    told(f"rows of {table.name}", done)
                made.models += done if table is tables.models else 0
                made.events += done if table is tables.events else 0
            target.backend.renumber(execute, _counted())
        relocate(target, None)
        blob_url = location_of(source)
        if blob_url is not None:
            beside = open_at(blob_url, source, create=False)
            inside = SqlBlobs(target)
            with _histories(target, beside) as histories:
                made.blobs = _copy_blobs(histories, beside, inside, told)
    return made


def _counted() -> list[tuple[str, str]]:
    """Tables and their columns that the database counts by itself."""
    return [
        (table.name, column.name)
        for table in tables.metadata.sorted_tables
        for column in table.columns
        if isinstance(column.identity, sa.Identity)
    ]


def _copy_blobs(histories: list[History], old: BlobStore, new: BlobStore, told: Progress) -> int:
    """Put what logs refer to into another store, one blob at a time; how many were not there."""
    copied, seen = 0, set[bytes]()
    for history in histories:
        for page in pieces(referenced(history)):
            fresh = set(page) - seen
            seen |= fresh
            for digest in sorted(new.missing(fresh)):
                new.put(digest, old.get(digest))
                copied += 1
                told("blobs copied", copied)
    return copied


@contextlib.contextmanager
def _histories(database: Database, *stores: BlobStore) -> Iterator[list[History]]:
    """Every model's log, which reads a blob from the first of the stores that has it."""
    store = SqlStore(database, _FirstOf(stores))
    with ThreadPoolExecutor(1) as pool:
        yield [History(store.model(name), pool) for name in store.models()]


class _FirstOf(SqlBlobs):
    """Reads from several stores, as far as manifests of snapshots are asked for."""

    def __init__(self, stores: tuple[BlobStore, ...]) -> None:
        self._stores = stores

    def get(self, digest: bytes) -> bytes:
        """From the first store that has the blob."""
        *others, last = self._stores
        for store in others:
            with contextlib.suppress(CorruptLedger):
                return store.get(digest)
        return last.get(digest)


def require_whole(url: str, told: Progress) -> None:
    """Recompute every digest of a ledger; CorruptLedger names the first event that is bad."""
    store = SqlStore.open(url, upgrade=False, guarded=False)
    with contextlib.closing(store), ThreadPoolExecutor(2) as pool:
        for name in store.models():
            report = verify(
                History(store.model(name), pool), lambda done, _: told("events verified", done)
            )
            if report.problem is not None:
                raise CorruptLedger(
                    f"{name!r} in the copy does not verify: {report.problem}", seq=report.bad_seq
                )


def remove_beside(file: Path) -> None:
    """Remove what those who wrote a closed SQLite database leave beside it: its locks."""
    for beside in file.parent.glob(f"{glob.escape(file.name)}-*"):
        shutil.rmtree(beside) if beside.is_dir() else beside.unlink()


def sync(folder: Path) -> None:
    """Make what became of the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
