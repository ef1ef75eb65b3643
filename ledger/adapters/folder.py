"""Reading an adapter's folder, as PEFT writes it: adapter_config.json, adapter_model.safetensors.

Nothing is unpickled, and no code from the folder runs. What a file says it holds is looked at
before any of it is read, so that a file that does not fit the model costs its header only.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from weightledger.ledger import json_text
from weightledger.ledger.adapters.adapter import Adapter
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.tensors.lanes import clone

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_MOST_CONFIG_BYTES = 1 << 20
_MOST_HEADER_BYTES = 4 << 20
_DEEPEST = 16

# Bytes an element, of the types that matrices may have.
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class FolderDescription:
    """What a folder says that it holds: the config, and the shape of each tensor by PEFT's key."""

    folder: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str) -> Adapter:
        """The adapter, under a name; InvalidRequest for a file that is not as it says."""
        try:
            # Read rather than mapped: another process may shorten the file meanwhile. And copied:
            # a tensor at an odd address computes other last bits than one out of the ledger.
            tensors = {
                key: clone(tensor)
                for key, tensor in load((self.folder / WEIGHTS).read_bytes()).items()
            }
        except (OSError, ValueError, SafetensorError) as error:
            raise _refused(self.folder, f"cannot be read: {error}") from error
        if self.shapes != {key: tuple(tensor.shape) for key, tensor in tensors.items()}:
            raise _refused(self.folder, f"has a {WEIGHTS} that changed while it was read")
        return Adapter.new(name, self.config, tensors)


def describe(path: str | Path) -> FolderDescription:
    """What the folder says that it holds.

    NotFound when there is no such folder; InvalidRequest, naming what was expected, for anything
    in it that is not an adapter in safetensors form.
    """
    folder = Path(path)
    try:
        if not folder.is_dir():
            raise NotFound(f"No adapter found for {path}", param="lora_path")
        return FolderDescription(folder, _config(folder), _shapes(folder))
    except RecursionError:
        raise _refused(folder, "has JSON that is nested too deeply") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise _refused(folder, f"cannot be read: {error}") from error


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise _refused(folder, f"has no {CONFIG}; expected a folder that PEFT saved")
    if file.stat().st_size > _MOST_CONFIG_BYTES:
        raise _refused(folder, f"has a {CONFIG} of more than {_MOST_CONFIG_BYTES} bytes")
    config = json_text.loads(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise _refused(folder, f"has a {CONFIG} that is not a JSON object")
    if _deeper_than(_DEEPEST, config):
        raise _refused(folder, f"has a {CONFIG} nested more than {_DEEPEST} deep")
    return config


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """From the header: eight bytes with its length, then JSON by tensor name."""
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = sorted(one.name for one in folder.glob("adapter_model.*"))
        also = f" ({', '.join(pickled)} is not read: pickled files run code)" if pickled else ""
        raise _refused(folder, f"has no {WEIGHTS}{also}")
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        length = int.from_bytes(opened.read(8), "little")
        if length > min(_MOST_HEADER_BYTES, size):
            raise _refused(
                folder,
                f"has a {WEIGHTS} that cannot be read: a header of {length} bytes in a file of "
                f"{size}; expected at most {_MOST_HEADER_BYTES}",
            )
        header = json_text.loads(opened.read(length))
    try:
        header.pop("__metadata__", None)
        shapes = {key: tuple(map(int, entry["shape"])) for key, entry in header.items()}
        needed = sum(_bytes_of(folder, key, header[key]["dtype"], shapes[key]) for key in shapes)
    except (AttributeError, KeyError, TypeError) as error:
        raise _refused(folder, f"has a {WEIGHTS} that cannot be read: {error!r}") from None
    if size != 8 + length + needed:
        raise _refused(
            folder,
            f"has a {WEIGHTS} that cannot be read: {size} bytes where its tensors take "
            f"{8 + length + needed}",
        )
    return shapes


def _bytes_of(folder: Path, key: str, dtype: str, shape: tuple[int, ...]) -> int:
    if dtype not in _FLOATS:
        raise _refused(
            folder, f"has {key!r:.200} as {dtype!r:.20}; expected one of {', '.join(_FLOATS)}"
        )
    return _FLOATS[dtype] * prod(shape)


def _deeper_than(most: int, value: Any) -> bool:
    level = [value]
    for _ in range(most):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        if not inner:
            return False
        level = inner
    return any(isinstance(one, dict | list) for one in level)


def _refused(folder: Path, why: str) -> InvalidRequest:
    return InvalidRequest(f"{folder} {why}", param="lora_path")
