"""Large bodies: streamed to a file, never held in memory, and read from there by mapping it."""

import asyncio
import errno
import json
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

import torch
from fastapi import Request
from safetensors import SafetensorError, safe_open

from weightledger.ledger.errors import InvalidRequest, StorageError, StorageFull

OCTET_STREAM = "application/octet-stream"


_PREFIX = "upload-"


def discard_leftovers(folder: Path) -> None:
    """Delete what servers that were killed were still receiving; nobody else may be using it."""
    for path in folder.glob(f"{_PREFIX}*"):
        path.unlink()


@asynccontextmanager
async def body_file(request: Request, folder: Path | None) -> AsyncIterator[Path]:
    """The body of a request as a temporary file, gone afterwards.

    InvalidRequest unless it is sent as application/octet-stream, StorageFull when the disk is.
    """
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != OCTET_STREAM:
        raise InvalidRequest(f"expected Content-Type {OCTET_STREAM}, got {sent!r}")
    with tempfile.NamedTemporaryFile(dir=folder, prefix=_PREFIX) as file:
        async for piece in request.stream():
            await asyncio.to_thread(_write, file, piece)
        await asyncio.to_thread(file.flush)
        yield Path(file.name)


@contextmanager
def mapped_tensors(path: Path) -> Iterator[Mapping[str, torch.Tensor]]:
    """The tensors of a safetensors file, mapped rather than read; InvalidRequest if it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            yield {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InvalidRequest(f"the body is not a safetensors file: {error}") from None


def _write(file: IO[bytes], piece: bytes) -> None:
    try:
        file.write(piece)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no space left for the body of the request: {error}") from error
        raise StorageError(f"the body of the request cannot be stored: {error}") from error


def json_object(text: str | None, param: str) -> dict[str, object] | None:
    """A query parameter that holds a JSON object; InvalidRequest otherwise."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param} must be a JSON object", param=param)
    return value
