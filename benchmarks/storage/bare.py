"""What the same bytes cost with the driver alone: committed in one row, fetched from the ledger's.

Whatever is built on that database takes at least as long. Nothing is done with what was fetched;
in the table for what is committed values stand as the ledger's do.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psycopg

from benchmarks.storage.ours import Ours
from weightledger.ledger.sql.sqlite_driver import driver

_TABLE = "CREATE TABLE bare (data {kind} NOT NULL)"
_INSERT = "INSERT INTO bare (data) VALUES (?)"
_FETCH = "SELECT data FROM blob_parts WHERE digest = ?"
_BINARY = 1


class Bare(Protocol):
    """One database, with nothing between it and its driver."""

    def commit(self, data: memoryview) -> None:
        """Make these bytes durable, in one row."""

    def fetch(self, digests: Sequence[bytes]) -> None:
        """Fetch what the ledger stores under these digests."""

    def close(self) -> None: ...


class BareSqlite:
    """`file` is made for what is committed."""

    def __init__(self, ledger: Path, file: Path) -> None:
        self._ledger = driver.connect(ledger, isolation_level=None)
        self._own = driver.connect(file, isolation_level=None)
        (page_size,) = self._ledger.execute("PRAGMA page_size").fetchone()
        for pragma in (f"page_size = {page_size}", "journal_mode = WAL", "synchronous = FULL"):
            self._own.execute(f"PRAGMA {pragma}").fetchone()
        self._own.execute(_TABLE.format(kind="BLOB"))

    def commit(self, data: memoryview) -> None:
        self._own.execute(_INSERT, (data,))

    def fetch(self, digests: Sequence[bytes]) -> None:
        for digest in digests:
            assert self._ledger.execute(_FETCH, (digest,)).fetchall()

    def close(self) -> None:
        self._ledger.close()
        self._own.close()


class BarePostgresql:
    """`url` is of another database of the same server, for what is committed."""

    def __init__(self, ledger: str, url: str) -> None:
        self._ledger = psycopg.connect(ledger, autocommit=True)
        self._ledger.pgconn.prepare(b"fetch", _FETCH.replace("?", "$1").encode())
        self._own = psycopg.connect(url, autocommit=True)
        self._own.execute("DROP TABLE IF EXISTS bare")
        self._own.execute(_TABLE.format(kind="bytea"))
        self._own.execute("ALTER TABLE bare ALTER COLUMN data SET STORAGE EXTERNAL")

    def commit(self, data: memoryview) -> None:
        self._own.execute(_INSERT.replace("?", "%s"), (data,), binary=True)

    def fetch(self, digests: Sequence[bytes]) -> None:
        for digest in digests:
            answer = self._ledger.pgconn.exec_prepared(b"fetch", [digest], [_BINARY], _BINARY)
            assert answer.ntuples

    def close(self) -> None:
        self._ledger.close()
        self._own.execute("DROP TABLE bare")
        self._own.close()


def filling(size: int) -> memoryview:
    """So many bytes that say nothing."""
    return memoryview(np.random.default_rng(0).bytes(size))


def bare(system: Ours, server: Any, folder: Path) -> Bare:
    """The driver alone, beside a ledger."""
    if system.folder is not None:
        return BareSqlite(system.folder / "ledger.db", folder / "bare.db")
    return BarePostgresql(system.url, server.get_uri())


def read_by(system: Ours, deltas: int) -> list[bytes]:
    """The digests of what restoring reads: the first state, whole, and so many updates after it."""
    history = system.log.history
    (first,) = history.store.snapshots_near(0, 1)[:1]
    updates = [event for event in reversed(system.log.events()) if event.payload_size][:deltas]
    tensors = history.ways.anchor_state(first).digests.values()
    return [*tensors, *(ref.digest for event in updates for ref in event.payload)]
