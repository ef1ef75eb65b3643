"""A safetensors file that several processes fill: its header first, then each tensor at its place.

The names of dtypes are the library's own, which is asked for each.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save

from weightledger.ledger.blobs import as_view
from weightledger.ledger.errors import StorageError
from weightledger.ledger.tensors.lanes import TORCH_DTYPES, lanes
from weightledger.ledger.tensors.spec import TensorSpec

_LENGTH_BYTES = 8
_ALIGNED = 8


class TensorPlace(NamedTuple):
    """Where a tensor's bytes stand in the file."""

    start: int
    stop: int


def begin(file: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> None:
    """Make the file of these tensors, named as they are to be called, all of them zero.

    StorageError when it cannot be written, or safetensors has no such dtype.
    """
    # As the library orders them: what needs the widest alignment first.
    ordered = sorted(specs, key=lambda spec: (-spec.element.itemsize, spec.name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for spec in ordered:
        header[spec.name] = {
            "dtype": _dtype(file, spec.dtype),
            "shape": list(spec.shape),
            "data_offsets": [at, at + spec.nbytes],
        }
        at += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    try:
        with file.open("wb") as out:
            out.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
            out.truncate(_LENGTH_BYTES + len(text) + at)
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error}") from error


def retell(file: Path, metadata: Mapping[str, str]) -> None:
    """Change what the file's header says to texts of the same length; StorageError otherwise."""
    try:
        with file.open("r+b") as out:
            length = int.from_bytes(out.read(_LENGTH_BYTES), "little")
            header = json.loads(out.read(length))
            header["__metadata__"] = dict(metadata)
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            text += b" " * (-len(text) % _ALIGNED)
            if len(text) != length:
                raise StorageError(f"the header of {file} has another length than was begun")
            out.seek(_LENGTH_BYTES)
            out.write(text)
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error}") from error


def fill(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write some of its tensors; StorageError when it cannot be done from here."""
    try:
        descriptor = os.open(file, os.O_RDWR)
        try:
            places = _places(descriptor)
            for name, tensor in tensors.items():
                at, view = places[name].start, as_view(lanes(tensor, name).view(np.uint8))
                while view:
                    written = os.pwrite(descriptor, view, at)
                    at, view = at + written, view[written:]
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(
            f"cannot write {file}, which every machine that shares the work has to reach: {error}"
        ) from error


def _places(descriptor: int) -> dict[str, TensorPlace]:
    length = int.from_bytes(os.pread(descriptor, _LENGTH_BYTES, 0), "little")
    header = json.loads(os.pread(descriptor, length, _LENGTH_BYTES))
    start = _LENGTH_BYTES + length
    return {
        name: TensorPlace(start + item["data_offsets"][0], start + item["data_offsets"][1])
        for name, item in header.items()
        if name != "__metadata__"
    }


def _dtype(file: Path, dtype: str) -> str:
    """The library's name of a dtype."""
    try:
        data = save({"one": torch.empty(0, dtype=TORCH_DTYPES[dtype])})
    except SafetensorError as error:
        raise StorageError(f"cannot write {file}: {error}") from error
    header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + int.from_bytes(data[:8], "little")])
    name: str = header["one"]["dtype"]
    return name
