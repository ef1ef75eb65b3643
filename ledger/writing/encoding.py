"""Recording changes of tensors: before and after in, verified frames and new digests out.

Works a tile at a time on a few threads, so beside the two tensors only a few tiles are in memory.
Every frame is decoded again and compared before it counts (`codecs.frames.encode_frame`), so what
is appended is known to replay.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from weightledger.ledger import interrupts
from weightledger.ledger.codecs import factors, on_device
from weightledger.ledger.codecs.delta import Delta, Indices, at, compare
from weightledger.ledger.codecs.frames import encode_frame
from weightledger.ledger.codecs.one_pass import look
from weightledger.ledger.codecs.tiling import tiles_of
from weightledger.ledger.events.changes import FACTORS, FRAMES, TensorChange
from weightledger.ledger.projection.change import HashedTensor
from weightledger.ledger.tensors.digest import (
    CHECKSUM_BYTES,
    CHUNK_BYTES,
    DIGEST_BYTES,
    checksum,
    no_checksums,
    rehash,
    root,
    touched_chunks,
    unchanged,
)
from weightledger.ledger.tensors.lanes import lanes, shares_memory
from weightledger.ledger.tensors.side_by_side import side_by_side
from weightledger.ledger.tensors.spec import Lanes, TensorSpec
from weightledger.ledger.writing.payload import PayloadWriter
from weightledger.ledger.writing.plan import Write
from weightledger.ledger.writing.small_encoding import (
    changed_outside,
    is_small,
    record_small,
    square_distance,
)

# How many tiles may be begun beyond the last that was written: bounds memory.
_AHEAD = 8
# Below this, handing work to other threads costs more than they save.
_SMALL_BYTES = 256 * 1024
# Of these a compiled loop adds up the squares of differences, of others torch does.
_SQUARED = ("float32", "bfloat16")


Written = tuple[TensorSpec, HashedTensor, Write]
"""A tensor as it is, by its full state name, with the chunk digests that it must have, and what is
to become of it."""

Recorded = tuple[TensorChange, HashedTensor, float | None]
"""A tensor's change, what it leads to, and for float dtypes the L2 norm of after − before, None
where it is not a finite number."""


@dataclass(frozen=True, slots=True)
class _Tile:
    frame: bytes
    changed: int
    chunks: bytearray
    checksums: bytearray
    square: float


def record_tensors(
    writes: Sequence[Written], payload: PayloadWriter, pool: Executor
) -> list[Recorded]:
    """Encode changes into the payload in the order given, on the threads of `pool`.

    A tensor whose bits do not change writes nothing. Raises WeightsChangedOutside when a `before`
    does not have the digests it must have.
    """
    return list(recorded_each(writes, payload, pool))


def recorded_each(
    writes: Sequence[Written], payload: PayloadWriter, pool: Executor
) -> Iterator[Recorded]:
    """`record_tensors`, one after the other: the next one's frames are written when it is asked
    for, so that others can be put between them."""
    if all(is_small(*written) for written in writes):
        yield from (record_small(*written, payload) for written in writes)
        return
    parts = tiles_of([spec for spec, _, _ in writes])
    tiles = _encoded(writes, parts, pool)
    for written, of in zip(writes, parts, strict=True):
        interrupts.handle()  # nothing is written yet, and there may be many
        yield _recorded(written, islice(tiles, len(of)), payload)


def _recorded(written: Written, tiles: Iterable[_Tile], payload: PayloadWriter) -> Recorded:
    """Write a tensor's tiles into the payload, and say what they come to."""
    spec, before, write = written
    chunks_after, checksums = bytearray(), bytearray()
    size = changed = 0
    square = 0.0
    held = b""
    for tile in tiles:
        chunks_after += tile.chunks
        checksums += tile.checksums
        changed += tile.changed
        square += tile.square
        # Frames are held back until one changes something: an unchanged tensor writes nothing.
        held += tile.frame
        if changed:
            size += payload.write(held)
            held = b""
    if write.factors is not None and changed:
        size = payload.write(factors.encode(write.factors))
    norm = math.sqrt(square)
    form = FRAMES if write.factors is None else FACTORS
    ends = root(before.chunks), root(chunks_after)
    return (
        TensorChange(spec.name, *ends, size, changed, form),
        HashedTensor(write.after, chunks_after, checksums),
        norm if math.isfinite(norm) else None,
    )


def _encoded(
    writes: Sequence[Written], parts: Sequence[Sequence[slice]], pool: Executor
) -> Iterator[_Tile]:
    """The tiles of all tensors in order, a few ahead of the one that is asked for."""
    jobs = [_Job(*written, part) for written, of in zip(writes, parts, strict=True) for part in of]
    if sum(spec.nbytes for spec, _, _ in writes) <= _SMALL_BYTES:
        yield from map(_encode, jobs)
        return
    yield from side_by_side(_encode, jobs, pool, ahead=_AHEAD)


@dataclass(frozen=True, slots=True)
class _Job:
    """One tile of a tensor: the elements `part`."""

    spec: TensorSpec
    held: HashedTensor
    write: Write
    part: slice

    @property
    def before(self) -> torch.Tensor:
        return self.held.tensor.detach().reshape(-1)[self.part]

    @property
    def after(self) -> torch.Tensor:
        return self.write.after.detach().reshape(-1)[self.part]

    @property
    def source(self) -> "Lanes | None":
        """What `after` is to be filled from: here rather than before all else, since tiles are
        filled side by side and stay in cache."""
        if self.write.source is None:
            return None
        return lanes(self.write.source.detach().reshape(-1)[self.part])


def _encode(job: _Job) -> _Tile:
    chunks = _part_of(job.held.chunks, DIGEST_BYTES, job.spec, job.part)
    known = job.held.checksums or no_checksums(job.held.chunks)
    checksums = _part_of(known, CHECKSUM_BYTES, job.spec, job.part)
    return _in_one_pass(job, chunks, checksums) or _in_steps(job, chunks, checksums)


def _in_one_pass(job: _Job, chunks: bytearray, checksums: bytearray) -> _Tile | None:
    """A tile of which any lane may have changed, in memory; None where it cannot be done so."""
    spec, old, new = job.spec, job.before, job.after
    if (
        job.write.positions is not None
        or spec.element.lanes > 1
        or not shares_memory(old)
        or not shares_memory(new)
    ):
        return None
    before, after = lanes(old, spec.name), lanes(new, spec.name)
    encoding, squared = job.write.factors is None, spec.dtype in _SQUARED
    looked = look(
        before, after, spec.element.ordered, job.source, encoding=encoding, squared=squared
    )
    if looked is None:
        return None
    square = looked.square if squared else _square(job, before, after, looked.indices)
    frame = looked.frame if looked.delta is None else encode_frame(looked.delta)
    numbers = looked.touched.tolist()
    _require_unchanged(job, unchanged(chunks, checksums, before, numbers, looked.before))
    rehash(chunks, after, numbers)
    checksum(checksums, after, numbers, looked.after)
    return _Tile(frame, looked.changed, chunks, checksums, square)


def _in_steps(job: _Job, chunks: bytearray, checksums: bytearray) -> _Tile:
    spec, old, new = job.spec, job.before, job.after
    source = job.source
    if source is not None:
        lanes(new)[:] = source
    if on_device.both_on(old, new):
        delta = on_device.compare_there(old, new, spec.element, _within(job))
        touched = _touched(delta, spec, chunks)
        before, after = (on_device.fetch(tile, touched) for tile in (old, new))
    else:
        before, after = lanes(old, spec.name), lanes(new, spec.name)
        delta = _compared(before, after, spec, _within(job))
        touched = _touched(delta, spec, chunks)
    # What was gathered is still in cache; hashing reads everything.
    square = _square(job, before, after, delta.indices)
    frame = encode_frame(delta) if job.write.factors is None else b""
    numbers = touched.tolist()
    _require_unchanged(job, unchanged(chunks, checksums, before, numbers))
    rehash(chunks, after, numbers)
    checksum(checksums, after, numbers)
    return _Tile(frame, _changed_elements(delta, spec), chunks, checksums, square)


def _require_unchanged(job: _Job, unchanged: bool) -> None:
    """Raise WeightsChangedOutside unless a tile was what `before` must be.

    A change computed from bits that the log does not have could never be rebuilt, so it is
    refused. Version counters miss writes through `tensor.data` and numpy; this does not.
    """
    if not unchanged:
        raise changed_outside(job.spec.name)


def _within(job: _Job) -> torch.Tensor | None:
    """The lanes of the tile that were written; None where that is not known."""
    positions = job.write.positions
    if positions is None or job.spec.element.lanes > 1:
        return None
    low, high = np.searchsorted(positions.numpy(), (job.part.start, job.part.stop))
    within: torch.Tensor = positions[low:high] - job.part.start
    return within


def _compared(before: Lanes, after: Lanes, spec: TensorSpec, where: torch.Tensor | None) -> Delta:
    if where is None:
        return compare(before, after, spec.element.ordered)
    return at(where.numpy(), before, after, spec.element.ordered)


def _part_of(all_chunks: bytearray, each: int, spec: TensorSpec, part: slice) -> bytearray:
    """What is kept of a tile's chunks, so many bytes of each; a tile starts where a chunk does."""
    first = part.start * spec.element.itemsize // CHUNK_BYTES
    last = -(-min(part.stop, spec.numel) * spec.element.itemsize // CHUNK_BYTES)
    return all_chunks[first * each : last * each]


def _touched(delta: Delta, spec: TensorSpec, chunks: bytearray) -> NDArray[np.intp]:
    """The numbers of a tile's chunks that a delta writes."""
    if delta.indices is None:
        return np.arange(len(chunks) // DIGEST_BYTES)
    return touched_chunks(delta.indices, delta.count, spec.element.lane.itemsize)


def _changed_elements(delta: Delta, spec: TensorSpec) -> int:
    if spec.element.lanes == 1:
        return len(delta.indices) if delta.indices is not None else _nonzero(delta)
    changed = np.flatnonzero(delta.difference) if delta.indices is None else delta.indices
    return len(np.unique(changed // spec.element.lanes))


def _nonzero(delta: Delta) -> int:
    return int(np.count_nonzero(delta.difference))


def _square(job: _Job, before: Lanes, after: Lanes, indices: Indices | None) -> float:
    """The sum of the squares of after − before; 0 where they are no floats."""
    if job.spec.dtype in _SQUARED and not on_device.both_on(job.before, job.after):
        return square_distance(before, after, indices)
    return _by_torch(job.after, job.before, indices) if job.spec.element.kind == "float" else 0.0


def _by_torch(new: torch.Tensor, old: torch.Tensor, indices: Indices | None) -> float:
    if indices is not None:
        where = torch.from_numpy(indices).to(new.device)
        new, old = new.index_select(0, where), old.index_select(0, where)
    wide = torch.float64 if new.dtype == torch.float64 else torch.float32
    distance = torch.sub(new.to(wide), old.to(wide)).to(torch.float64)
    return float(torch.dot(distance, distance))
