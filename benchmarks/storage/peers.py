"""What others do: write the whole state, or all of its difference, compressed.

All keep every state, as the ledger does, begin with the state they are made with, and have it on
the disk when `record` returns. None verifies what it wrote or reads.
"""

import contextlib
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import zstandard
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from benchmarks.storage.files import disk_bytes, sync_file, sync_write
from benchmarks.storage.workloads import State
from weightledger.ledger.tensors.lanes import lanes


class Peer(Protocol):
    """Something that keeps the states of a model; `written` is the last one's bytes on disk."""

    written: int

    def record(self, state: State) -> None:
        """Make a state durable."""

    def restore(self) -> State:
        """The newest state."""

    def disk(self) -> int:
        """Bytes of all states, the first included."""


@dataclass(frozen=True)
class Format:
    """How a whole state is written, and read again into tensors like the (meta) ones given."""

    write: Callable[[State, Path], None]
    read: Callable[[Path, State], State]


class WholeStates:
    """One file, or folder, of a format for each state."""

    def __init__(self, format: Format, folder: Path, state: State) -> None:
        folder.mkdir()
        self._format, self._folder, self._states = format, folder, 0
        self._like = {name: tensor.to("meta") for name, tensor in state.items()}
        self.written = 0
        self.record(state)

    def record(self, state: State) -> None:
        before = self.disk()
        self._states += 1
        self._format.write(state, self._newest)
        self.written = self.disk() - before

    def restore(self) -> State:
        return self._format.read(self._newest, self._like)

    def disk(self) -> int:
        return disk_bytes(self._folder)

    @property
    def _newest(self) -> Path:
        return self._folder / str(self._states)


class XorZstd:
    """What RL frameworks send: XOR with the last state, all of it compressed."""

    _size = struct.Struct("<Q")

    def __init__(self, folder: Path, state: State) -> None:
        folder.mkdir()
        self._folder, self._states, self.written = folder, 0, 0
        self._last = {name: lanes(tensor).copy() for name, tensor in state.items()}
        save_file(state, folder / "base")
        sync_file(folder / "base")

    def record(self, state: State) -> None:
        compressor = zstandard.ZstdCompressor(level=1, threads=2)
        parts = []
        for name, tensor in state.items():
            now = lanes(tensor)
            packed = compressor.compress((now ^ self._last[name]).data)
            parts += [self._size.pack(len(packed)), packed]
            self._last[name][:] = now
        self._states += 1
        data = b"".join(parts)
        sync_write(self._folder / str(self._states), data)
        self.written = len(data)

    def restore(self) -> State:
        state = load_file(self._folder / "base")
        for number in range(1, self._states + 1):
            data = memoryview((self._folder / str(number)).read_bytes())
            for name in self._last:
                (size,) = self._size.unpack(data[:8])
                plain = zstandard.ZstdDecompressor().decompress(data[8 : 8 + size])
                bits = lanes(state[name])
                bits ^= np.frombuffer(plain, bits.dtype)
                data = data[8 + size :]
        return state

    def disk(self) -> int:
        return disk_bytes(self._folder)


def _torch_save(state: State, path: Path) -> None:
    torch.save(state, path)
    sync_file(path)


def _torch_load(path: Path, like: State) -> State:
    loaded: State = torch.load(path, weights_only=True)
    return loaded


def _safetensors_save(state: State, path: Path) -> None:
    save_file(state, path)
    sync_file(path)


def _safetensors_load(path: Path, like: State) -> State:
    return load_file(path)


def _dcp_save(state: State, path: Path) -> None:
    with _one_process():  # its writer syncs its files
        save(dict(state), checkpoint_id=path, no_dist=True)


def _dcp_load(path: Path, like: State) -> State:
    out = {name: torch.empty_like(tensor, device="cpu") for name, tensor in like.items()}
    with _one_process():
        load(dict(out), checkpoint_id=path, no_dist=True)
    return out


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


FORMATS: Mapping[str, Format] = {
    "torch.save": Format(_torch_save, _torch_load),
    "safetensors": Format(_safetensors_save, _safetensors_load),
    "torch DCP": Format(_dcp_save, _dcp_load),
}

WHOLE, XOR = "safetensors", "XOR + zstd"
PEERS = (*FORMATS, XOR)


def peer(name: str, folder: Path, state: State) -> Peer:
    """The peer of that name, with the state as its first; the folder is made."""
    if name == XOR:
        return XorZstd(folder, state)
    return WholeStates(FORMATS[name], folder, state)
