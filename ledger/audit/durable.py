"""A small file of its owner's, replaced at once and durably."""

import os
from pathlib import Path

from weightledger.ledger.errors import StorageError


def replace(file: Path, text: str) -> None:
    """Give a file this text: whole, synced, readable by its owner alone. StorageError if not."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = file.with_name(f"{file.name}.{os.urandom(8).hex()}")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(handle)
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error}") from error
