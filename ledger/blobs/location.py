"""Where a ledger's blobs are: chosen when it is made, and remembered in its database."""

from weightledger.ledger.blobs import BlobStore
from weightledger.ledger.blobs.registry import get_opener
from weightledger.ledger.blobs.sql import SqlBlobs
from weightledger.ledger.errors import CorruptLedger, InvalidRequest
from weightledger.ledger.sql.backend import Execute
from weightledger.ledger.sql.database import Database

_FIND = "SELECT url FROM blob_location"
_USED = "SELECT 1 FROM models LIMIT 1"
_REMEMBER = "INSERT INTO blob_location (only_row, url) VALUES (1, ?) ON CONFLICT DO NOTHING"


def open_blobs(url: str | None, database: Database, *, create: bool = True) -> BlobStore:
    """The blob store of the ledger in `database`.

    A ledger without one yet gets the one at `url`, or rows of its own database for None; with
    `create=False` it is not remembered. Afterwards None is whatever it has. Raises InvalidRequest
    for a URL that names no store or another one than the ledger has, StorageError when a store that
    is to be remembered cannot be used.
    """
    asked = None if url is None else get_opener(url).permanent(url)
    with database.read() as execute:
        known, found = _find(execute)
    if not known and create:
        blobs = open_at(asked, database, create=True)
        with database.write() as execute:
            if asked is not None and execute(_USED).fetchone() is not None:
                raise _another(asked, None, database)
            execute(_REMEMBER, (asked,))
            _, found = _find(execute)  # another process may have been first
        if found == asked:
            return blobs
    if asked is not None and asked != found:
        raise _another(asked, found, database)
    return open_at(found, database, create=False)


def location_of(database: Database) -> str | None:
    """The permanent URL of a ledger's blob store; None for the database itself."""
    with database.look() as execute:
        return _find(execute)[1]


def relocate(database: Database, url: str | None) -> None:
    """Remember another location; every blob that the ledger refers to is there already."""
    with database.write() as execute:
        execute("DELETE FROM blob_location")
        execute(_REMEMBER, (url,))


def _find(execute: Execute) -> tuple[bool, str | None]:
    """Whether a location is remembered, and which."""
    row = execute(_FIND).fetchone()
    if row is None:
        return False, None
    (url,) = row
    if not (url is None or (isinstance(url, str) and "\0" not in url)):
        raise CorruptLedger(f"the blob location that is remembered is no text: {url!r}")
    return True, url


def open_at(url: str | None, database: Database, *, create: bool) -> BlobStore:
    """The blob store at a permanent URL; None is the database itself."""
    return SqlBlobs(database) if url is None else get_opener(url).open(url, create=create)


def _another(asked: str, found: str | None, database: Database) -> InvalidRequest:
    return InvalidRequest(
        f"the ledger in {database.name} keeps its blobs in {found or 'the database'},"
        f" not in {asked}: leave the blob URL away, or move the blobs with `weightledger move`",
        param="blob_url",
    )
