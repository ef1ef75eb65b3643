"""What this machine can do at best: every row of the table is held against one of these.

`copy` is one pass over the model into memory that is there already, `hash` BLAKE3 over it on one
thread, `hash on all cores` as the ledger hashes, `scatter` one update's changed lanes written where
they belong, `write` as many bytes over those of a file that is there, synced: no new metadata.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.storage.workloads import State
from weightledger.ledger.codecs import Delta, compare
from weightledger.ledger.tensors.digest import chunk_digests, hash_many
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import DTYPES, Lanes

Run = Callable[[int], None]


@dataclass(frozen=True)
class Limits:
    """Seconds of each limit, measured in the rounds of what is held against them."""

    copy: float
    hash: float
    hash_all: float
    scatter: float


class Machine:
    """The runs that measure the limits for one state; `folder` is on the disk to be measured."""

    def __init__(self, state: State, folder: Path) -> None:
        self._held = [lanes(tensor).copy() for tensor in state.values()]
        self._out = [np.zeros_like(bits) for bits in self._held]
        self._pool = ThreadPoolExecutor(psutil.cpu_count())
        self._file = (folder / "limit").open("wb")
        self.write(sum(bits.nbytes for bits in self._held))
        self._scattered: list[tuple[Lanes, Delta]] = []

    def close(self) -> None:
        self._pool.shutdown()
        self._file.close()

    def changes(self, deltas: list[Delta]) -> None:
        """What `scatter` writes: one update's changes, a delta a tensor."""
        self._scattered = [
            (out, delta) for out, delta in zip(self._out, deltas, strict=True) if delta.changed
        ]

    def runs(self) -> dict[str, Run]:
        """To be interleaved with what is measured; `read` makes Limits of the medians."""
        return {
            "copy": lambda _: self._copy(),
            "hash": lambda _: self._hash(),
            "hash_all": lambda _: self._hash_all(),
            "scatter": lambda _: self._scatter(),
        }

    def read(self, medians: dict[str, float]) -> Limits:
        return Limits(*(medians[name] for name in ("copy", "hash", "hash_all", "scatter")))

    def write(self, size: int) -> None:
        """Write that many bytes of the model over those of a file, and sync them."""
        at = 0
        for bits in self._held:
            if at < size:
                data = bits.view(np.uint8)[: size - at].data
                while data:
                    done = os.pwrite(self._file.fileno(), data, at)
                    data, at = data[done:], at + done
        os.fdatasync(self._file.fileno())

    def _copy(self) -> None:
        for out, bits in zip(self._out, self._held, strict=True):
            out[:] = bits

    def _hash(self) -> None:
        for bits in self._held:
            chunk_digests(bits)

    def _hash_all(self) -> None:
        hash_many(self._held, self._pool)

    def _scatter(self) -> None:
        for out, delta in self._scattered:
            out[slice(None) if delta.indices is None else delta.indices] = delta.difference


def deltas_between(before: State, after: State) -> list[Delta]:
    """What changed in each tensor."""
    return [
        compare(
            lanes(before[name]),
            lanes(tensor),
            DTYPES[str(tensor.dtype).removeprefix("torch.")].ordered,
        )
        for name, tensor in after.items()
    ]
