"""A delta encoded and read again within one compiled call, without Python's lock.

The bytes are those that `sparse` and `dense` write, and `frames` chooses, which a test holds; what
they rarely have to write (positions far apart, 30 to 90 % of very many lanes) is left to them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.codecs.compiled import fill, fold, to_runs
from weightledger.ledger.codecs.compiled_check import says
from weightledger.ledger.codecs.compiled_packing import smaller
from weightledger.ledger.codecs.dense import Dense
from weightledger.ledger.codecs.frames import DENSE_BONUS, SPARSE_BELOW, WHOLE_SAMPLE
from weightledger.ledger.codecs.gaps import LONG_MEAN
from weightledger.ledger.codecs.sparse import Sparse
from weightledger.ledger.codecs.streams import SHORTEST_PACKED, WORTHWHILE
from weightledger.ledger.tensors.compiling import compiled
from weightledger.ledger.tensors.spec import Lanes

_SPARSE, _DENSE = (np.frombuffer(one.id.encode("ascii"), np.uint8) for one in (Sparse, Dense))


@compiled
def _put_u32(value: Any, out: NDArray[np.uint8], at: Any) -> Any:
    for byte in range(4):
        out[at + byte] = value >> (8 * byte)
    return at + 4


@compiled
def _put_stream(
    values: NDArray[np.uint8],
    out: NDArray[np.uint8],
    at: Any,
    room: NDArray[np.uint8],
    zstd: NDArray[np.int64],
) -> Any:
    """Write a stream as `streams.stream` does; where it ends, or -1."""
    if values.size >= SHORTEST_PACKED:
        way, size = smaller(values, room, zstd)
        if size < 0:
            return np.int64(-1)
        if size < WORTHWHILE * values.size:
            at = _put_u32(size, out, at)
            fill(out[at : at + size], room[way, :size])
            return at + size
    at = _put_u32(np.int64(values.size), out, at)
    fill(out[at : at + values.size], values)
    return at + values.size


@compiled
def _put_signed(
    difference: Lanes,
    folded: Lanes,
    plane: NDArray[np.uint8],
    out: NDArray[np.uint8],
    at: Any,
    room: NDArray[np.uint8],
    zstd: NDArray[np.int64],
) -> Any:
    """Write what `planes.encode_signed` does; where it ends, or -1."""
    lane = difference.dtype.type
    highest = fold(difference, folded)
    planes = 0
    while planes < difference.itemsize and highest >> lane(8 * planes):
        planes += 1
    out[at] = planes
    at += 1
    for number in range(planes):
        shift = lane(8 * number)
        for entry in range(folded.size):
            plane[entry] = folded[entry] >> shift
        at = _put_stream(plane[: folded.size], out, at, room, zstd)
        if at < 0:
            return at
    return at


@compiled
def _put_sparse(
    positions: NDArray[np.int32],
    difference: Lanes,
    folded: Lanes,
    plane: NDArray[np.uint8],
    out: NDArray[np.uint8],
    room: NDArray[np.uint8],
    zstd: NDArray[np.int64],
) -> Any:
    """Write what `Sparse.encode` does of one lane or more; where it ends, or -1 where they are next
    to each other or far apart."""
    first, count = np.int64(positions[0]), difference.size - 1
    span = np.int64(positions[count]) - first
    if span == count or span > LONG_MEAN * count:
        return np.int64(-1)
    at = _put_u32(np.int64(difference.size), out, np.int64(0))
    out[at] = 0
    at = _put_u32(first, out, at + 1)
    size = to_runs(positions, plane[: count + span // 255])
    at = _put_u32(np.int64(size), out, at)
    at = _put_stream(plane[:size], out, at, room, zstd)
    if at < 0:
        return at
    return _put_signed(difference, folded, plane, out, at, room, zstd)


@compiled
def encoded(
    lanes: int,
    positions: NDArray[np.int32],
    difference: Lanes,
    folded: Lanes,
    plane: NDArray[np.uint8],
    out: NDArray[np.uint8],
    packed: NDArray[np.uint8],
    packing: NDArray[np.int64],
    gaps: NDArray[np.uint8],
    held: NDArray[np.int64],
    unpacking: NDArray[np.int64],
) -> Any:
    """Write to `out` the delta of so many lanes; its size, or -1 where that is left to a codec, and
    whether it is a dense one.

    `positions` is empty where every lane has a difference. There is room: for as many as have a
    difference in `folded` and `plane`, for runs in `plane` besides, for what they take at most in
    `out`, and for a few lanes that are written in both ways twice as much of each; the rest is as
    in `compiled_packing.smaller` and `compiled_check.says`.
    """
    changed = difference.size
    dense = positions.size == 0
    if changed == 0:
        return np.int64(0), dense
    own = folded[:changed]
    if dense:
        at = _put_signed(difference, own, plane, out, np.int64(0), packed, packing)
    elif changed / lanes < SPARSE_BELOW:
        at = _put_sparse(positions, difference, own, plane, out, packed, packing)
    elif lanes > WHOLE_SAMPLE:
        return np.int64(-1), dense
    else:
        at = _put_sparse(positions, difference, own, plane, out, packed, packing)
        if at < 0:
            return at, dense
        every = folded[lanes : 2 * lanes]
        every[:] = 0
        for entry in range(changed):
            every[positions[entry]] = difference[entry]
        behind = out[at:]
        size = _put_signed(every, folded[:lanes], plane, behind, np.int64(0), packed, packing)
        if size < 0:
            return size, dense
        if DENSE_BONUS * size <= at:
            dense = True
            out[:size] = behind[:size]
            at, difference, positions = size, every, positions[:0]
    if at < 0 or not says(
        _DENSE if dense else _SPARSE,
        out[:at],
        lanes,
        positions,
        difference,
        folded,
        plane,
        gaps,
        held,
        unpacking,
    ):
        return np.int64(-1), dense
    return at, dense
