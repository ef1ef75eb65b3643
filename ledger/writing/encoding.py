"""Recording changes of tensors: before and after in, verified frames and new digests out.

Works a tile at a time on a few threads, so beside the two tensors only a few tiles are in memory.
Every frame is decoded again and compared before it counts (`codecs.frames.encode_frame`), so what
is appended is known to replay.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from weightledger.ledger.codecs import factors, on_device
from weightledger.ledger.codecs.delta import Delta, at, compare
from weightledger.ledger.codecs.factors import Factors
from weightledger.ledger.codecs.few import encode_few
from weightledger.ledger.codecs.frames import encode_frame
from weightledger.ledger.codecs.tiling import tiles_of
from weightledger.ledger.errors import WeightsChangedOutside
from weightledger.ledger.events.changes import FACTORS, FRAMES, TensorChange
from weightledger.ledger.tensors.digest import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    chunk_digests,
    rehash,
    root,
    touched_chunks,
)
from weightledger.ledger.tensors.lanes import lanes, shares_memory
from weightledger.ledger.tensors.spec import WEIGHTS, Lanes, TensorSpec
from weightledger.ledger.writing.payload import PayloadWriter

# Tiles that may wait for their turn to be written: bounds memory, keeps the threads busy.
_AHEAD = 4
# Below this, handing work to other threads costs more than they save.
_SMALL_BYTES = 256 * 1024


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
    nothing was written; None has every element compared. With `factors` these are what is stored.
    """

    spec: TensorSpec
    before: torch.Tensor
    after: torch.Tensor
    chunks: bytearray
    positions: torch.Tensor | None = None
    factors: Factors | None = None


def record_tensors(
    writes: Sequence[TensorWrite], payload: PayloadWriter, pool: Executor
) -> list[Recorded]:
    """Encode changes into the payload in the order given, on the threads of `pool`.

    A tensor whose bits do not change writes nothing. Raises WeightsChangedOutside when a `before`
    does not have the digests it must have.
    """
    if all(map(_is_small, writes)):
        return [_recorded_small(written, payload) for written in writes]
    parts = tiles_of([written.spec for written in writes])
    tiles = _encoded(writes, parts, pool)
    return [
        _recorded(written, islice(tiles, len(of)), payload)
        for written, of in zip(writes, parts, strict=True)
    ]


def _is_small(written: TensorWrite) -> bool:
    """Whether a change is one of all of a float32 tensor in memory that is a single chunk."""
    before, after = written.before, written.after
    return (
        written.positions is None
        and written.factors is None
        and written.spec.dtype == "float32"
        and 0 < written.spec.nbytes <= CHUNK_BYTES
        and shares_memory(before)
        and shares_memory(after)
    )


def _recorded_small(written: TensorWrite, payload: PayloadWriter) -> Recorded:
    """`_recorded` without tiles, threads and copies: what they cost is most of a small update."""
    name, held = written.spec.name, written.chunks
    old, new = _floats(written.before), _floats(written.after)
    before, after = old.view(np.uint32), new.view(np.uint32)
    if chunk_digests(before) != held:
        raise _changed_outside(written.spec)
    few = encode_few(before, after, True)
    if few is not None:
        frame, changed = few
    else:
        delta = compare(before, after, True)
        if delta.indices is None:
            changed = int(np.count_nonzero(delta.difference))
        else:
            changed = len(delta.indices)
            old, new = old[delta.indices], new[delta.indices]
        frame = encode_frame(delta) if changed else b""
    square = 0.0
    if changed:
        with np.errstate(all="ignore"):  # of NaN and infinity there is no distance
            distance = torch.from_numpy(np.subtract(new, old).astype(np.float64))
        square = float(torch.dot(distance, distance))
    norm = math.sqrt(square)
    chunks = chunk_digests(after)
    return Recorded(
        change=TensorChange(
            name, root(held), root(chunks), payload.write(frame) if changed else 0, changed, FRAMES
        ),
        after=written.after,
        chunks=chunks,
        delta_norm=norm if math.isfinite(norm) else None,
    )


def _floats(tensor: torch.Tensor) -> NDArray[np.float32]:
    flat: NDArray[np.float32] = tensor.detach().numpy().reshape(-1)
    return flat


def _recorded(written: TensorWrite, tiles: Iterable[_Tile], payload: PayloadWriter) -> Recorded:
    """Write a tensor's tiles into the payload, and say what they come to."""
    chunks_after = bytearray()
    size = changed = 0
    square = 0.0
    held = b""
    for tile in tiles:
        chunks_after += tile.chunks
        changed += tile.changed
        square += tile.square
        # Frames are held back until one changes something: an unchanged tensor writes nothing.
        held += tile.frame
        if changed:
            size += payload.write(held)
            held = b""
    if written.factors is not None and changed:
        size = payload.write(factors.encode(written.factors))
    norm = math.sqrt(square)
    form = FRAMES if written.factors is None else FACTORS
    before = root(written.chunks)
    return Recorded(
        change=TensorChange(written.spec.name, before, root(chunks_after), size, changed, form),
        after=written.after,
        chunks=chunks_after,
        delta_norm=norm if math.isfinite(norm) else None,
    )


def _encoded(
    writes: Sequence[TensorWrite], parts: Sequence[Sequence[slice]], pool: Executor
) -> Iterator[_Tile]:
    """The tiles of all tensors in order, a few ahead of the one that is asked for."""
    jobs = (_Job(written, part) for written, of in zip(writes, parts, strict=True) for part in of)
    if sum(written.spec.nbytes for written in writes) <= _SMALL_BYTES:
        yield from map(_encode, jobs)
        return
    waiting: deque[Future[_Tile]] = deque()
    for job in jobs:
        waiting.append(pool.submit(_encode, job))
        if len(waiting) > _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@dataclass(frozen=True, slots=True)
class _Job:
    """One tile of a tensor: the elements `part`."""

    written: TensorWrite
    part: slice

    @property
    def before(self) -> torch.Tensor:
        return self.written.before.detach().reshape(-1)[self.part]

    @property
    def after(self) -> torch.Tensor:
        return self.written.after.detach().reshape(-1)[self.part]


def _encode(job: _Job) -> _Tile:
    spec = job.written.spec
    old, new = job.before, job.after
    chunks = _chunks_of(job.written.chunks, spec, job.part)
    if on_device.both_on(old, new):
        delta = on_device.compare_there(old, new, spec.element, _within(job))
        touched = _touched(delta, spec, chunks)
        before, after = (on_device.fetch(tile, touched) for tile in (old, new))
    else:
        before, after = lanes(old, spec.name), lanes(new, spec.name)
        delta = _compared(before, after, spec, _within(job))
        touched = _touched(delta, spec, chunks)
    # What was gathered is still in cache; hashing reads everything.
    square = _square_distance(new, old, delta) if spec.element.kind == "float" else 0.0
    frame = encode_frame(delta) if job.written.factors is None else b""
    _rehash(chunks, touched, before, after, spec)
    return _Tile(frame, _changed_elements(delta, spec), chunks, square)


def _within(job: _Job) -> torch.Tensor | None:
    """The lanes of the tile that were written; None where that is not known."""
    positions = job.written.positions
    if positions is None or job.written.spec.element.lanes > 1:
        return None
    low, high = np.searchsorted(positions.numpy(), (job.part.start, job.part.stop))
    within: torch.Tensor = positions[low:high] - job.part.start
    return within


def _compared(before: Lanes, after: Lanes, spec: TensorSpec, where: torch.Tensor | None) -> Delta:
    if where is None:
        return compare(before, after, spec.element.ordered)
    return at(where.numpy(), before, after, spec.element.ordered)


def _chunks_of(chunks: bytearray, spec: TensorSpec, part: slice) -> bytearray:
    """The digests of a tile's chunks; a tile starts where a chunk starts."""
    first = part.start * spec.element.itemsize // CHUNK_BYTES
    last = -(-min(part.stop, spec.numel) * spec.element.itemsize // CHUNK_BYTES)
    return chunks[first * DIGEST_BYTES : last * DIGEST_BYTES]


def _touched(delta: Delta, spec: TensorSpec, chunks: bytearray) -> NDArray[np.intp]:
    """The numbers of a tile's chunks that a delta writes."""
    if delta.indices is None:
        return np.arange(len(chunks) // DIGEST_BYTES)
    return touched_chunks(delta.indices, delta.count, spec.element.lane.itemsize)


def _rehash(
    chunks: bytearray, touched: NDArray[np.intp], before: Lanes, after: Lanes, spec: TensorSpec
) -> None:
    """Bring a tile's chunk digests up to date; what they were must be what `before` has.

    A change computed from bits that the log does not have could never be rebuilt, so it is
    refused. Version counters miss writes through `tensor.data` and numpy; this does not.
    """
    numbers = touched.tolist()
    known = bytes(chunks)
    rehash(chunks, before, numbers)
    if chunks != known:
        raise _changed_outside(spec)
    rehash(chunks, after, numbers)


def _changed_outside(spec: TensorSpec) -> WeightsChangedOutside:
    return WeightsChangedOutside(
        f"live weights were changed without the ledger: {spec.name.removeprefix(WEIGHTS)}"
    )


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
    distance = torch.sub(new.to(wide), old.to(wide)).to(torch.float64)
    return float(torch.dot(distance, distance))
