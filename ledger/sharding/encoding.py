"""A rank's share of an event: its chunks of each tensor compared, encoded and stored."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from weightledger.ledger.blobs import BlobStore
from weightledger.ledger.codecs.delta import compare
from weightledger.ledger.codecs.frames import encode_frame, tiles
from weightledger.ledger.events import BlobRef
from weightledger.ledger.projection.change import HashedTensor
from weightledger.ledger.tensors.digest import chunk_digests
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.encoding import record_tensors
from weightledger.ledger.writing.payload import PayloadWriter
from weightledger.ledger.writing.plan import Write


@dataclass(frozen=True, slots=True)
class RankChunks:
    """The chunks of a tensor that a rank records: their values, flat, and their digests."""

    values: torch.Tensor
    chunks: bytearray

    @classmethod
    def of(cls, values: torch.Tensor) -> "RankChunks":
        return cls(values, chunk_digests(lanes(values)))


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a rank did of one changed tensor: `size` bytes of frames, so many changed elements, the
    L2 norm of the difference (None where that is not finite), and the chunk digests afterwards."""

    size: int
    changed: int
    norm: float | None
    chunks: bytes

    def to_plain(self) -> list[Any]:
        return [self.size, self.changed, self.norm, self.chunks]

    @classmethod
    def from_plain(cls, told: Sequence[Any]) -> "Encoded":
        return cls(*told)


def differs(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether two flat tensors have other bits."""
    return not np.array_equal(lanes(before), lanes(after))


def encode(
    specs: Sequence[TensorSpec],
    before: Mapping[str, RankChunks],
    after: Mapping[str, torch.Tensor],
    blobs: BlobStore,
    pool: Executor,
) -> tuple[dict[str, Encoded], dict[str, RankChunks], list[BlobRef]]:
    """Write this rank's frames of the tensors that changed somewhere, in the order given.

    Gives what was done of each, what the rank holds afterwards, and the blobs, which are durable.
    """
    payload = PayloadWriter(blobs)
    done: dict[str, Encoded] = {}
    held: dict[str, RankChunks] = {}
    for spec in specs:
        name = spec.name
        old, new = before[name], after[name]
        part = TensorSpec(name, spec.dtype, (new.numel(),))
        held_before = HashedTensor(old.values, old.chunks)
        ((change, hashed, norm),) = record_tensors([(part, held_before, Write(new))], payload, pool)
        size = change.size
        if not change.changed:  # others changed theirs: what is whole has no gaps
            size = payload.write(_unchanged(old.values)) if new.numel() else 0
        done[name] = Encoded(size, change.changed, norm, bytes(hashed.chunks))
        held[name] = RankChunks(new, bytearray(hashed.chunks))
    written, _, pieces = payload.finish(inline=False)
    for digest, data in pieces.items():
        blobs.put(digest, data)
    return done, held, list(written)


def _unchanged(values: torch.Tensor) -> bytes:
    """The frames that say of every lane that it stays."""
    bits = lanes(values)
    return b"".join(
        encode_frame(compare(bits[start:stop], bits[start:stop], False))
        for start, stop in tiles(len(bits))
    )
