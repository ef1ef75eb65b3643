"""Recording one tensor's change: new values in, verified frames and new digests out.

Works a tile at a time, so beside the tensor itself only a few tiles are in memory. Every frame is
decoded again and compared before it counts (`codecs.encode_frame` does that), so what is appended
is known to replay.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ledger.codecs.delta import Delta, compare
from ledger.codecs.frames import TILE_LANES, encode_frame
from ledger.digest import CHUNK_BYTES, DIGEST_BYTES, rehash, root, touched_chunks
from ledger.events import TensorChange
from ledger.payload import PayloadWriter
from ledger.tensors import Lanes, TensorSpec, lanes


@dataclass(frozen=True, slots=True)
class Recorded:
    """A tensor's change with what it leads to.

    `after` is a new contiguous tensor; `chunks` its chunk digests; `delta_norm` the L2 norm of
    after − before for float dtypes, None where it is not a finite number.
    """

    change: TensorChange
    after: torch.Tensor
    chunks: bytearray
    delta_norm: float | None


def record_tensor(
    spec: TensorSpec,
    before: torch.Tensor,
    chunks: bytearray,
    tiles: Iterable[tuple[int, torch.Tensor]],
    payload: PayloadWriter,
) -> Recorded:
    """Encode the change from `before` to the values given as flat tiles, in order.

    `spec` has the full state name, `chunks` are the chunk digests of `before`. A tensor whose
    bits do not change writes no frames.
    """
    after = torch.empty(spec.shape, dtype=before.dtype, device=before.device)
    flat_before, flat_after = before.detach().reshape(-1), after.view(-1)
    chunks_after = bytearray(chunks)
    size = changed = 0
    square = 0.0
    held = b""
    for start, new in tiles:
        old = flat_before[start : start + new.numel()]
        flat_after[start : start + new.numel()] = new
        new_lanes = lanes(new, spec.name)
        delta = compare(lanes(old, spec.name), new_lanes, spec.element.ordered)
        changed += _changed_elements(delta, spec)
        # Frames are held back until one changes something: an unchanged tensor writes nothing.
        held += encode_frame(delta)
        if changed:
            size += payload.write(held)
            held = b""
        _rehash_tile(chunks_after, delta, new_lanes, start * spec.element.itemsize)
        if spec.element.kind == "float":
            square += _square_distance(new, old)
    norm = math.sqrt(square)
    return Recorded(
        change=TensorChange(spec.name, root(chunks), root(chunks_after), size, changed),
        after=after,
        chunks=chunks_after,
        delta_norm=norm if math.isfinite(norm) else None,
    )


def whole(spec: TensorSpec, tensor: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """An existing tensor as flat tiles, for changes that were computed elsewhere."""
    flat = tensor.detach().reshape(-1)
    for start in tile_starts(spec):
        yield start, flat[start : start + tile_elements(spec)]


def tile_elements(spec: TensorSpec) -> int:
    """How many elements make a tile: as many as one frame takes."""
    return TILE_LANES // spec.element.lanes


def tile_starts(spec: TensorSpec) -> range:
    """The first element of each tile of a tensor."""
    return range(0, spec.numel, tile_elements(spec))


def _rehash_tile(chunks: bytearray, delta: Delta, new: Lanes, offset: int) -> None:
    """Bring the digests of a tile's chunks up to date; tiles start where a chunk starts."""
    first = offset // CHUNK_BYTES * DIGEST_BYTES
    count = -(-new.nbytes // CHUNK_BYTES)
    numbers: Iterable[int] = range(count)
    if delta.indices is not None:
        numbers = touched_chunks(delta.indices, delta.count, new.itemsize).tolist()
    part = chunks[first : first + count * DIGEST_BYTES]
    rehash(part, new, numbers)
    chunks[first : first + len(part)] = part


def _changed_elements(delta: Delta, spec: TensorSpec) -> int:
    changed = np.flatnonzero(delta.difference) if delta.indices is None else delta.indices
    if spec.element.lanes == 1:
        return len(changed)
    return len(np.unique(changed // spec.element.lanes))


def _square_distance(new: torch.Tensor, old: torch.Tensor) -> float:
    wide = torch.float64 if new.dtype == torch.float64 else torch.float32
    distance = torch.sub(new.to(wide), old.to(wide))
    return float(torch.linalg.vector_norm(distance, dtype=torch.float64)) ** 2
