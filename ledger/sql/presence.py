"""Who serves a database: servers announce themselves at it, commands look there.

On SQLite by a locked file beside the database's, on PostgreSQL by a session with a name of its own.
Either is the operating system's or the database's, and gone when the server is, however it ends.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import sqlalchemy as sa

from weightledger.ledger.errors import LedgerError, LedgerInUse, StorageError
from weightledger.ledger.permissions import PRIVATE_FILE
from weightledger.ledger.sql import sqlite
from weightledger.ledger.sql.database import Database

logger = logging.getLogger(__name__)

_FILE_SUFFIX = "-server"
_SESSION = "weightledger"
_NAME_BYTES = 63  # of a session; PostgreSQL cuts the rest off
_CHECK_S = 5.0  # how often a session is tried, which a restart of the database ends


@dataclass(frozen=True, slots=True)
class Announced:
    """A server: where it listens, and the name of the machine it runs on."""

    url: str
    host: str


@contextlib.contextmanager
def announce(database_url: str, url: str) -> Iterator[None]:
    """Say that the server at `url` serves this database, as long as the block runs.

    A SQLite database has one server: LedgerInUse names it if it is another.
    """
    here = Announced(url, socket.gethostname())
    file = _beside(database_url)
    with _locked(file, here) if file is not None else _session(database_url, here):
        yield


def servers(database_url: str) -> list[Announced]:
    """The servers of a database right now."""
    file = _beside(database_url)
    if file is not None:
        holder = _holder(file)
        return [] if holder is None else [holder]
    database = Database.connect(database_url)
    try:
        with database.read() as execute:
            rows = execute(
                "SELECT application_name::text FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE ? ORDER BY pid",
                (f"{_SESSION} %",),
            ).fetchall()
    finally:
        database.close()
    return [_named(name) for (name,) in rows]


def locked_by(path: Path) -> str | None:
    """What is written in a file that someone else holds a lock on; None when nobody does."""
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read()
    except FileNotFoundError:
        return None
    return None


@contextlib.contextmanager
def lock(path: Path, text: str) -> Iterator[None]:
    """Hold a file with `text` in it; BlockingIOError when someone else does. Gone afterwards."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        with os.fdopen(descriptor, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is(path, file.fileno()):
                continue  # its last holder removed it meanwhile
            _write(file.fileno(), path, text)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _write(descriptor: int, path: Path, text: str) -> None:
    """The text is for people and commands; the lock holds without it, where there is no room."""
    os.ftruncate(descriptor, 0)
    try:
        os.pwrite(descriptor, text.encode(), 0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        logger.warning("no space is left to write into %s who holds it: give commands --url", path)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _beside(database_url: str) -> Path | None:
    """The lock file of a SQLite database, beside it; None for another kind."""
    url = sa.make_url(database_url)
    if url.get_backend_name() != "sqlite" or url.database is None:
        return None
    path = sqlite.file_of(url)
    return path.with_name(path.name + _FILE_SUFFIX)


@contextlib.contextmanager
def _locked(file: Path, here: Announced) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock(file, json.dumps(asdict(here))))
        except BlockingIOError:
            other = _holder(file)
            who = f"the server at {other.url}" if other else "another process"
            name = file.name.removesuffix(_FILE_SUFFIX)
            raise LedgerInUse(f"{name} is served by {who}") from None
        except OSError as error:
            raise StorageError(f"cannot use {file}: {error}") from error
        yield


def _holder(file: Path) -> Announced | None:
    text = locked_by(file)
    try:
        return None if text is None else Announced(**json.loads(text))
    except (ValueError, TypeError):
        return None


@contextlib.contextmanager
def _session(database_url: str, here: Announced) -> Iterator[None]:
    """Keep a session with our name open, on a thread of its own."""
    stop = threading.Event()
    announced = threading.Event()
    named = sa.make_url(database_url).update_query_dict({"application_name": _name(here)})

    def keep() -> None:
        while not stop.is_set():
            try:
                database = Database.connect(named.render_as_string(hide_password=False))
                try:
                    with database.session() as execute:
                        announced.set()
                        while not stop.wait(_CHECK_S):
                            execute("SELECT 1")
                finally:
                    database.close()
            except Exception as error:  # whoever starts a server waits for this thread
                unknown = not isinstance(error, LedgerError)
                logger.warning("commands will not find this server: %s", error, exc_info=unknown)
                announced.set()
                stop.wait(_CHECK_S)

    thread = threading.Thread(target=keep, name="ledger-presence", daemon=True)
    thread.start()
    announced.wait()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _name(here: Announced) -> str:
    """`weightledger HOST URL`, without what does not fit: then --url has to be given."""
    name = f"{_SESSION} {here.host} {here.url}"
    return name if len(name.encode()) <= _NAME_BYTES else f"{_SESSION} {here.host[:40]}"


def _named(name: str) -> Announced:
    _, host, *url = name.split(" ")
    return Announced(url[0] if url else "", host)
