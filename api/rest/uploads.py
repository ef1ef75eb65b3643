"""Large bodies: streamed to a file, never held in memory, and read from there by mapping it."""

import asyncio
import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import torch
from fastapi import Request
from safetensors import SafetensorError, safe_open

from weightledger.ledger.errors import InvalidRequest, StorageError, StorageFull
from weightledger.ledger.json_text import RepeatedName, require_header_names_once

logger = logging.getLogger(__name__)

OCTET_STREAM = "application/octet-stream"

_PREFIX = "upload-"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def discard_leftovers(folder: Path) -> None:
    """Delete what servers that were killed were still receiving; nobody else may be using it."""
    for path in folder.glob(f"{_PREFIX}*"):
        _discard(path)


@asynccontextmanager
async def body_file(request: Request, folder: Path | None) -> AsyncIterator[Path]:
    """The body of a request as a temporary file of the server's user only, gone afterwards.

    InvalidRequest unless it is sent as application/octet-stream, StorageFull when the disk is,
    StorageError when it cannot be stored for another reason. A file that cannot be deleted is
    said in the log: the update that was made from it stands.
    """
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != OCTET_STREAM:
        raise InvalidRequest(
            f"expected Content-Type {OCTET_STREAM}, got {sent!r}", param="Content-Type"
        )
    with _explained():
        descriptor, name = await asyncio.to_thread(tempfile.mkstemp, dir=folder, prefix=_PREFIX)
    path = Path(name)
    try:
        try:
            async for piece in request.stream():
                await asyncio.to_thread(_write, descriptor, piece)
        finally:
            with _explained():
                os.close(descriptor)
        yield path
    finally:
        await asyncio.to_thread(_discard, path)


@contextmanager
def mapped_tensors(path: Path) -> Iterator[Mapping[str, torch.Tensor]]:
    """The tensors of a safetensors file, mapped rather than read; InvalidRequest if it is none."""
    with contextlib.ExitStack() as open_files:
        try:
            with _explained():
                file = open_files.enter_context(safe_open(path, framework="pt"))
                require_header_names_once(path)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except RepeatedName as error:
            raise InvalidRequest(f"the body is ambiguous: {error}", param=error.name) from None
        except SafetensorError as error:
            raise InvalidRequest(f"the body is not a safetensors file: {error}") from None
        yield tensors


def _write(descriptor: int, piece: bytes) -> None:
    with _explained():
        view = memoryview(piece)
        while view:
            view = view[os.write(descriptor, view) :]


@contextmanager
def _explained() -> Iterator[None]:
    """The ledger's errors for those of the file system."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"no space left for the body of the request: {error}") from error
        raise StorageError(f"the body of the request cannot be stored: {error}") from error


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.error("cannot delete %s: %s", path, error)
