"""What lies in a signed folder, so that any reader of safetensors takes it.

`model-00001-of-00003.safetensors` …
    The tensors, some MiB to a file, a larger tensor alone: who changes one rewrites its file only.
    The further names of a tied tensor are copies beside it.
`model.safetensors.index.json`
    Which file each name is in; its metadata say which state of which log this is.
`weight_ledger.json`
    The lines that the state's digest is taken over: every tensor's dtype, shape and digest.
`model.sig`
    The signature. It goes before anything else is changed, and comes back when all is there.

Nothing here is synced to the disk: what a crash leaves unfinished has no signature or fails it, and
the ledger makes it again.
"""

import contextlib
import json
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from weightledger.ledger.debug.walking import HEADER
from weightledger.ledger.errors import InvalidRequest, StorageError
from weightledger.ledger.tensors.lanes import torch_dtype
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec
from weightledger.ledger.tensors.state import StateDigest

INDEX = "model.safetensors.index.json"
STATE = "weight_ledger.json"
SIGNATURE = "model.sig"

FILE_BYTES = 8 * 1024 * 1024

_PARTIAL = ".part"


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Which tensors, by full name, are in which file; the same for the same names and shapes."""

    files: Mapping[str, tuple[str, ...]]
    copies: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, state: StateDigest) -> "FileLayout":
        """The layout of a state."""
        groups: list[list[str]] = []
        size = FILE_BYTES
        for name in sorted(state.specs):
            if size >= FILE_BYTES or size + state.specs[name].nbytes > FILE_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(name)
            size += state.specs[name].nbytes
        total = len(groups)
        files = {
            f"model-{number:05d}-of-{total:05d}.safetensors": tuple(group)
            for number, group in enumerate(groups, 1)
        }
        copies: dict[str, tuple[str, ...]] = {}
        for alias, first in state.aliases.items():
            copies[first] = (*copies.get(first, ()), alias)
        return cls(files, copies)

    def names(self, tensor: str) -> tuple[str, ...]:
        """The names in its file that a tensor has."""
        return tuple(bare(one) for one in (tensor, *self.copies.get(tensor, ())))


def bare(name: str) -> str:
    """The name of a tensor in a file."""
    return name.removeprefix(WEIGHTS)


def require_ours(folder: Path) -> None:
    """Make the folder; InvalidRequest for one in which something else lies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = not (folder / STATE).exists() and any(folder.iterdir())
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error}") from error
    if foreign:
        raise InvalidRequest(f"{folder} is not empty and is no signed folder", param="out")


def write_files(
    folder: Path, layout: FileLayout, state: StateDigest, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write every tensor, and take away what lay there before."""
    for old in folder.glob("model-*.safetensors*"):
        if old.name not in layout.files:
            old.unlink()
    for file, names in layout.files.items():
        named = {
            one: tensors[name] if at == 0 else tensors[name].clone()  # no shared memory
            for name in names
            for at, one in enumerate(layout.names(name))
        }
        partial = folder / (file + _PARTIAL)
        try:
            save_file(named, partial, metadata={"format": "pt"})
            partial.replace(folder / file)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"cannot write {folder / file}: {error}") from error


def texts(layout: FileLayout, state: StateDigest, facts: Mapping[str, str]) -> dict[str, str]:
    """The small files, by name: they are written anew for each version."""
    weight_map = {
        one: file
        for file, names in layout.files.items()
        for name in names
        for one in layout.names(name)
    }
    total = sum(spec.nbytes for spec in state.specs.values())
    metadata = {"total_size": total, **{HEADER + key: value for key, value in facts.items()}}
    lines = [
        [name, spec.dtype, list(spec.shape), state.digests[name].hex()]
        for name, spec in sorted(state.specs.items())
    ]
    kept = {**facts, "tensors": lines, "aliases": dict(state.aliases)}
    return {
        INDEX: json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=1) + "\n",
        STATE: json.dumps(kept, separators=(",", ":")) + "\n",
    }


def read_state(text: bytes) -> StateDigest:
    """The state of a `weight_ledger.json`; ValueError or KeyError for what is none."""
    kept: Any = json.loads(text)
    specs = [TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape, _ in kept["tensors"]]
    digests = {line[0]: bytes.fromhex(line[3]) for line in kept["tensors"]}
    return StateDigest(specs, digests, kept["aliases"])


@contextmanager
def mapped(file: Path) -> Iterator["Mapped"]:
    """A file's tensors in place: what is written to them is in the file."""
    with file.open("r+b") as handle:
        pages = mmap.mmap(handle.fileno(), 0)
        try:
            yield Mapped(pages)
        finally:
            with contextlib.suppress(BufferError):  # an error may hold a tensor: it closes later
                pages.close()


class Mapped:
    """The bytes of one file of tensors."""

    def __init__(self, pages: mmap.mmap) -> None:
        self._pages = pages
        size = int.from_bytes(pages[:8], "little")
        self._start = 8 + size
        self._entries: dict[str, Any] = json.loads(pages[8 : self._start])

    def tensor(self, name: str, spec: TensorSpec) -> torch.Tensor:
        """A tensor that shares the file's memory, by its name in the file."""
        begin, end = self._entries[name]["data_offsets"]
        if end - begin != spec.nbytes:
            raise ValueError(f"{name} has {end - begin} bytes, expected {spec.nbytes}")
        plain = torch.frombuffer(
            self._pages, dtype=torch_dtype(spec), count=spec.numel, offset=self._start + begin
        )
        return plain.reshape(spec.shape)

    def sha256(self) -> bytes:
        """The SHA-256 of the whole file."""
        return sha256(self._pages).digest()


def write_text(file: Path, text: str) -> None:
    """Replace a small file."""
    partial = file.with_name(file.name + _PARTIAL)
    try:
        partial.write_text(text, "utf-8")
        partial.replace(file)
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error}") from error
