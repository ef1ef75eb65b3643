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
from weightledger.ledger.writing.encoding import recorded_each
from weightledger.ledger.writing.payload import PayloadWriter
from weightledger.ledger.writing.plan import Write

_AT_ONCE = 1 << 16  # elements that are compared at once


@dataclass(frozen=True, slots=True)
class RankChunks:
    """The chunks of a tensor that a rank records: their values, flat, their digests, and their
    checksums where they are known."""

    values: torch.Tensor
    chunks: bytearray
    checksums: bytearray | None = None

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
    old, new = lanes(before), lanes(after)
    # By pieces, for most tensors that differ do so in the first.
    pieces = (slice(at, at + _AT_ONCE) for at in range(0, max(len(old), len(new)), _AT_ONCE))
    return not all(np.array_equal(old[piece], new[piece]) for piece in pieces)


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
    writes = []
    for spec in specs:
        old, new = before[spec.name], after[spec.name]
        part = TensorSpec(spec.name, spec.dtype, (new.numel(),))
        writes.append((part, HashedTensor(old.values, old.chunks, old.checksums), Write(new)))
    recorded = recorded_each(writes, payload, pool)
    for (part, _, write), (change, hashed, norm) in zip(writes, recorded, strict=True):
        name, new = part.name, write.after
        size = change.size
        if not change.changed:  # others changed theirs: what is whole has no gaps
            size = payload.write(_unchanged(before[name].values)) if new.numel() else 0
        done[name] = Encoded(size, change.changed, norm, bytes(hashed.chunks))
        held[name] = RankChunks(new, bytearray(hashed.chunks), hashed.checksums)
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
