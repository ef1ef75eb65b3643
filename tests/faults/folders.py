"""A data folder with a known history, and ways to damage it that its triggers do not notice."""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.faults import models
from weightledger import IncrementalUpdateRequest, Ledger, TorchEngine
from weightledger.ledger.writing.caller import Caller

MODEL = "tests.faults.models:factory"

# The state tree: 0 → 1 → 2 → 3, then 4, which event 5 leaves again; 6 follows on 3.
INLINE, BLOB, ABANDONED, BACK, HEAD = 1, 2, 4, 5, 6


def make_folder(folder: Path) -> Path:
    """Write the history above; the payload of BLOB is too large to lie beside its event."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(7)
    with opened(folder) as ledger:
        log = ledger.model(MODEL, engine=TorchEngine(models.factory()))
        log.apply(request("0.bias", torch.randn(400, generator=generator)))
        log.apply(request("0.weight", torch.randn(400, 400, generator=generator)))
        log.apply(request("2.bias", torch.randn(4, generator=generator)))
        log.apply(request("2.weight", torch.randn(4, 400, generator=generator)))
        log.rollback("seq:3", caller=Caller(reason="worse"))
        log.apply(request("0.bias", torch.randn(400, generator=generator)))
    return folder


def copy_folder(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def request(name: str, data: object, **fields: object) -> IncrementalUpdateRequest:
    return IncrementalUpdateRequest(name, data, update_type="replace", **fields)


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'ledger.db'}"


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Ledger]:
    with Ledger.open(url_of(folder)) as ledger:
        yield ledger


@contextlib.contextmanager
def without_triggers(folder: Path) -> Iterator[sqlite3.Connection]:
    """Write to the database as someone who has the file can; the triggers come back unchanged."""
    with contextlib.closing(sqlite3.connect(folder / "ledger.db")) as connection:
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        yield connection
        for _, sql in triggers:
            connection.execute(sql)
        connection.commit()


def flip(connection: sqlite3.Connection, table: str, column: str, where: str) -> None:
    """Change one bit in the middle of the one value that `where` selects."""
    rows = connection.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchall()
    assert len(rows) == 1, f"{len(rows)} rows of {table} where {where}"
    data = bytearray(rows[0][0])
    data[len(data) // 2] ^= 1
    connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (bytes(data),))


def event(seq: int) -> str:
    """Selects one event of the only model."""
    return f"event_key = {(1 << 40) | seq}"
