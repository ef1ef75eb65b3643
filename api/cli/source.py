"""Where commands read from and write to."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from weightledger import Ledger
from weightledger.api.server.folder import holder
from weightledger.ledger.config import DynamicUpdateConfig
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.history.reader import History


@contextlib.contextmanager
def open_ledger(data_dir: Path, database: str | None, *, guarded: bool = True) -> Iterator[Ledger]:
    """The ledger of a data folder or database URL, as it is: nothing is created or upgraded."""
    config = DynamicUpdateConfig(backup_dir=data_dir, database_url=database)
    if database is None and not Path(config.url.removeprefix("sqlite:///")).exists():
        raise NotFound(f"no ledger in {data_dir}; start one with: weightledger serve")
    with Ledger.open(config.url, upgrade=False, guarded=guarded) as ledger:
        yield ledger


def choose_model(ledger: Ledger, name: str | None) -> str:
    """The model to work on: the one named, or the only one there is."""
    models = ledger.models()
    if name is not None:
        return name
    if len(models) != 1:
        known = ", ".join(models) or "none"
        raise InvalidRequest(f"say which model with --model; registered: {known}", param="model")
    return models[0]


@contextlib.contextmanager
def open_history(
    data_dir: Path, database: str | None, model: str | None, *, guarded: bool = True
) -> Iterator[History]:
    """One model's log, to read; unguarded also from a database that is not append-only."""
    with open_ledger(data_dir, database, guarded=guarded) as ledger:
        yield ledger.history(choose_model(ledger, model))


def server_url(url: str | None, data_dir: Path) -> str | None:
    """The server to write to: the one given, or the one that holds the data folder."""
    if url is not None:
        return url.rstrip("/")
    held = holder(data_dir)
    return held.url if held else None
