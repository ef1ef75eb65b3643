"""Recording one tensor's change: before and after in, verified frames and new digests out.

Works a tile at a time on a few threads, so beside the two tensors only a few tiles are in memory.
Every frame is decoded again and compared before it counts (`codecs.frames.encode_frame`), so what
is appended is known to replay.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ledger import factors
from ledger.changes import FACTORS, FRAMES, TensorChange
from ledger.codecs.delta import Delta, at, compare
from ledger.codecs.frames import TILE_LANES, encode_frame
from ledger.digest import CHUNK_BYTES, DIGEST_BYTES, rehash, root, touched_chunks
from ledger.errors import WeightsChangedOutside
from ledger.factors import Factors
from ledger.payload import PayloadWriter
from ledger.tensors import WEIGHTS, Lanes, TensorSpec, lanes

# Tiles that may wait for their turn to be written: bounds memory, keeps the threads busy.
_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Recorded:
    """A tensor's change and what it leads to.

    `after` is the tensor's new value, `chunks` its chunk digests; `delta_norm` is the L2 norm of
    after − before for float dtypes, None where it is not a finite number.
    """

    change: TensorChange
    after: torch.Tensor
    chunks: bytearray
    delta_norm: float | None


@dataclass(frozen=True, slots=True)
class _Tile:
    frame: bytes
    changed: int
    chunks: bytearray
    square: float


@dataclass(frozen=True, slots=True)
class TensorWrite:
    """A tensor before and after a write, and the chunk digests that `before` must have.

    `spec` has the full state name. `positions` are ascending flat positions outside of which
    nothing was written; None has every element compared.
    """

    spec: TensorSpec
    before: torch.Tensor
    after: torch.Tensor
    chunks: bytearray
    positions: torch.Tensor | None = None


def record_tensor(
    written: TensorWrite,
    payload: PayloadWriter,
    pool: Executor,
    low_rank: Factors | None = None,
) -> Recorded:
    """Encode a tensor's change into the payload: as bit differences, or as the factors given.

    A tensor whose bits do not change writes nothing. Raises WeightsChangedOutside when `before`
    does not have the digests it must have.
    """
    spec, after, chunks = written.spec, written.after, written.chunks
    chunks_after = bytearray()
    size = changed = 0
    square = 0.0
    held = b""
    for tile in _encoded(written, pool, frames=low_rank is None):
        chunks_after += tile.chunks
        changed += tile.changed
        square += tile.square
        # Frames are held back until one changes something: an unchanged tensor writes nothing.
        held += tile.frame
        if changed:
            size += payload.write(held)
            held = b""
    if low_rank is not None and changed:
        size = payload.write(factors.encode(low_rank))
    norm = math.sqrt(square)
    form = FRAMES if low_rank is None else FACTORS
    return Recorded(
        change=TensorChange(spec.name, root(chunks), root(chunks_after), size, changed, form),
        after=after,
        chunks=chunks_after,
        delta_norm=norm if math.isfinite(norm) else None,
    )


def same_bits(one: torch.Tensor, other: torch.Tensor, spec: TensorSpec) -> bool:
    """Whether two tensors of one spec hold the same bits; stops at the first tile that differs."""
    flat, others, step = one.detach().reshape(-1), other.detach().reshape(-1), tile_elements(spec)
    return all(
        np.array_equal(lanes(flat[at : at + step]), lanes(others[at : at + step]))
        for at in tile_starts(spec)
    )


def tile_elements(spec: TensorSpec) -> int:
    """How many elements make a tile: as many as one frame takes."""
    return TILE_LANES // spec.element.lanes


def tile_starts(spec: TensorSpec) -> range:
    """The first element of each tile of a tensor."""
    return range(0, spec.numel, tile_elements(spec))


def _encoded(written: TensorWrite, pool: Executor, *, frames: bool) -> Iterator[_Tile]:
    """The tiles in order, encoded on the pool when there are several."""
    spec, chunks = written.spec, written.chunks
    old, new = written.before.detach().reshape(-1), written.after.detach().reshape(-1)
    step = tile_elements(spec)
    starts = tile_starts(spec)
    positions = None if written.positions is None else written.positions.numpy()
    if spec.element.lanes > 1:
        positions = None

    def encode(start: int) -> _Tile:
        part = slice(start, start + step)
        within = None
        if positions is not None:
            low, high = np.searchsorted(positions, (start, start + step))
            within = positions[low:high] - start
        return _encode(spec, old[part], new[part], _chunks_of(chunks, spec, part), within, frames)

    if len(starts) <= 1:
        yield from map(encode, starts)
        return
    waiting: deque[Future[_Tile]] = deque()
    for start in starts:
        waiting.append(pool.submit(encode, start))
        if len(waiting) > _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _encode(
    spec: TensorSpec,
    old: torch.Tensor,
    new: torch.Tensor,
    chunks: bytearray,
    positions: NDArray[np.int64] | None,
    frames: bool,
) -> _Tile:
    before, after = lanes(old, spec.name), lanes(new, spec.name)
    ordered = spec.element.ordered
    if positions is None:
        delta = compare(before, after, ordered)
    else:
        delta = at(positions, before.take(positions), after.take(positions), len(after), ordered)
    frame = encode_frame(delta) if frames else b""
    changed = _changed_elements(delta, spec)
    _rehash(chunks, delta, before, after, spec)
    square = _square_distance(new, old, delta) if spec.element.kind == "float" else 0.0
    return _Tile(frame, changed, chunks, square)


def _chunks_of(chunks: bytearray, spec: TensorSpec, part: slice) -> bytearray:
    """The digests of a tile's chunks; a tile starts where a chunk starts."""
    first = part.start * spec.element.itemsize // CHUNK_BYTES
    last = -(-min(part.stop, spec.numel) * spec.element.itemsize // CHUNK_BYTES)
    return chunks[first * DIGEST_BYTES : last * DIGEST_BYTES]


def _rehash(chunks: bytearray, delta: Delta, before: Lanes, after: Lanes, spec: TensorSpec) -> None:
    """Bring a tile's chunk digests up to date; what they were must be what `before` has.

    A change computed from bits that the log does not have could never be rebuilt, so it is
    refused. Version counters miss writes through `tensor.data` and numpy; this does not.
    """
    numbers: Iterable[int] = range(len(chunks) // DIGEST_BYTES)
    if delta.indices is not None:
        numbers = touched_chunks(delta.indices, delta.count, after.itemsize).tolist()
    known = bytes(chunks)
    rehash(chunks, before, numbers)
    if chunks != known:
        raise WeightsChangedOutside(
            f"live weights were changed without the ledger: {spec.name.removeprefix(WEIGHTS)}"
        )
    rehash(chunks, after, numbers)


def _changed_elements(delta: Delta, spec: TensorSpec) -> int:
    changed = np.flatnonzero(delta.difference) if delta.indices is None else delta.indices
    if spec.element.lanes == 1:
        return len(changed)
    return len(np.unique(changed // spec.element.lanes))


def _square_distance(new: torch.Tensor, old: torch.Tensor, delta: Delta) -> float:
    if delta.indices is not None:
        where = torch.from_numpy(delta.indices).to(new.device)
        new, old = new.index_select(0, where), old.index_select(0, where)
    wide = torch.float64 if new.dtype == torch.float64 else torch.float32
    distance = torch.sub(new.to(wide), old.to(wide))
    norm = float(torch.linalg.vector_norm(distance, dtype=torch.float64))
    return norm * norm  # infinity where ** would raise
