"""The file that a bisection is kept in between commands."""

import contextlib
import fcntl
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from weightledger.api.server.settings import Settings
from weightledger.ledger.errors import InvalidRequest, StorageError

State = Annotated[
    Path | None,
    typer.Option(
        "--state", help="The file that the search is kept in; by default beside the data folder."
    ),
]


def file_of(settings: Settings, model: str, state: Path | None) -> Path:
    """The file that --state names, else one beside the data folder, for each model its own."""
    if state is not None:
        return state
    folder = settings.data_dir.resolve()
    name = re.sub(r"[^\w.-]", "_", model)
    return folder.with_name(f"{folder.name}.{name}.bisect.json")


@contextlib.contextmanager
def held(file: Path) -> Iterator[Path]:
    """The file of a search, for one command at a time."""
    lock = _lock(file)
    try:
        opened_lock = lock.open("w")
    except OSError as error:
        raise StorageError(f"cannot write {lock}: {error}") from error
    with opened_lock:
        try:
            fcntl.flock(opened_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InvalidRequest(f"another command is at this search ({file})") from None
        yield file


def remove(file: Path) -> bool:
    """Forget a search; whether there was one. StorageError where the file cannot be removed."""
    there = file.exists()
    try:
        file.unlink(missing_ok=True)
        _lock(file).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot remove {file}: {error}") from error
    return there


def _lock(file: Path) -> Path:
    return file.with_name(file.name + ".lock")
