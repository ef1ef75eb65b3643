"""A frame of a delta read in one call without Python's lock: its kind, its gaps and its values.

Streams are unpacked by zstd's own functions, called by their addresses. Bytes are as hostile here
as anywhere: whatever is not plainly as `sparse`, `dense` and `unchanged` write it is left to them,
who tell what is wrong with it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.codecs.calling import bytes_at, called_with_five, called_with_two
from weightledger.ledger.codecs.compiled import fill
from weightledger.ledger.codecs.delta import TILE_LANES
from weightledger.ledger.codecs.dense import Dense
from weightledger.ledger.codecs.sparse import Sparse
from weightledger.ledger.codecs.unchanged import Unchanged
from weightledger.ledger.tensors.compiling import compiled
from weightledger.ledger.tensors.spec import Lanes

# Columns of what is known of a delta in a tile that was read: what kind of frame it is, how many
# entries it has, where its differences begin among all that are held, the address of its gaps, how
# many bytes (of runs) or planes they are, the position of the next entry, which entry and which
# byte of the gaps that is.
KIND, CHANGED, VALUES, GAPS, SIZE, NEXT, ENTRY, BYTE = range(8)
COLUMNS = 8
NONE, DENSE, RUNS, PLANES = range(4)
UNKNOWN = -1
_SPARSE, _EVERY, _UNCHANGED = (
    np.frombuffer(codec.id.encode("ascii"), np.uint8) for codec in (Sparse, Dense, Unchanged)
)

GAPS_BYTES = TILE_LANES + TILE_LANES // 64
"""More than the gaps of a frame take as they are usually written."""


@compiled
def u32(data: NDArray[np.uint8], at: int) -> Any:
    value = np.int64(0)
    for byte in range(4):
        value |= np.int64(data[at + byte]) << np.int64(8 * byte)
    return value


@compiled
def _is(data: NDArray[np.uint8], at: int, size: int, name: NDArray[np.uint8]) -> bool:
    same = size == name.size
    for byte in range(min(size, name.size)):
        same &= data[at + byte] == name[byte]
    return same


@compiled
def kind_at(data: NDArray[np.uint8], at: int, size: Any) -> Any:
    """Which codec's id stands at `at`, as the kind that it is at first."""
    if _is(data, at, size, _SPARSE):
        return RUNS
    if _is(data, at, size, _EVERY):
        return DENSE
    return NONE if _is(data, at, size, _UNCHANGED) else UNKNOWN


@compiled
def _stream(
    base: Any,
    data: NDArray[np.uint8],
    at: int,
    stop: int,
    size: int,
    room: Any,
    zstd: NDArray[np.int64],
) -> Any:
    """The address of the `size` bytes of the stream at `at`, and where the next one begins.

    `base` is the address of `data`, `room` that of as many bytes to unpack it to. Address 0 for
    one that is not as `streams` writes it.
    """
    if stop - at < 4:
        return 0, at
    stored = u32(data, at)
    at += 4
    if stored > size or stored > stop - at:
        return 0, at
    if stored == size:
        return base + at, at + stored
    context, decompress, content_size, frame_size = zstd[0], zstd[1], zstd[2], zstd[3]
    source = base + at
    if (
        called_with_two(content_size, source, stored) != size
        or called_with_two(frame_size, source, stored) != stored
        or called_with_five(decompress, context, room, size, source, stored) != size
    ):
        return 0, at
    return room, at + stored


@compiled
def read_values(
    base: Any,
    data: NDArray[np.uint8],
    at: int,
    stop: int,
    room: Any,
    zstd: NDArray[np.int64],
    undo: bool,
    out: Lanes,
) -> Any:
    """Read signed byte planes as differences, negative for `undo`; where they end, or -1."""
    lane = out.dtype.type
    if at >= stop or data[at] > out.itemsize:
        return -1
    planes = np.int64(data[at])
    at += 1
    if planes == 0:
        out[:] = lane(0)
    for plane in range(planes):
        address, at = _stream(base, data, at, stop, out.size, room, zstd)
        if address == 0:
            return -1
        values = bytes_at(address, out.size)
        if plane == 0:
            for entry in range(out.size):
                out[entry] = lane(values[entry])
        else:
            shift = lane(8 * plane)
            for entry in range(out.size):
                out[entry] |= lane(values[entry]) << shift
    if planes:
        for entry in range(out.size):
            value = out[entry]
            step = lane((value >> lane(1)) ^ (lane(0) - (value & lane(1))))
            out[entry] = lane(lane(0) - step) if undo else step
    return at


@compiled
def _sum(values: NDArray[np.uint8]) -> Any:
    total = np.uint64(0)
    for entry in range(values.size):
        total += np.uint64(values[entry])
    return np.int64(total)


@compiled
def _ends(runs: NDArray[np.uint8]) -> Any:
    """How many gaps runs have."""
    ends = np.uint64(0)
    for entry in range(runs.size):
        ends += np.uint64(runs[entry] != 255)
    return np.int64(ends)


@compiled
def read_gaps(
    base: Any,
    data: NDArray[np.uint8],
    at: int,
    stop: int,
    lanes: Any,
    held: NDArray[np.int64],
    room: NDArray[np.uint8],
    zstd: NDArray[np.int64],
) -> Any:
    """Find the gaps of a sparse frame and check that its positions are those of `lanes`.

    What it has to unpack goes to `room`. Gives where they end and how much of the room they took,
    -1 where they are not as `gaps` writes them or there is no room.
    """
    changed = held[CHANGED]
    if stop - at < 5:
        return -1, 0
    form, first = data[at], u32(data, at + 1)
    at += 5
    if first >= lanes:
        return -1, 0
    held[NEXT], held[ENTRY], held[BYTE] = first, 0, 0
    if form == 0:
        if stop - at < 4:
            return -1, 0
        size = u32(data, at)
        if not changed - 1 <= size <= changed - 1 + lanes // 255 or size > room.size:
            return -1, 0
        address, at = _stream(base, data, at + 4, stop, size, np.int64(room.ctypes.data), zstd)
        if address == 0:
            return -1, 0
        runs = bytes_at(address, size)
        if _ends(runs) != changed - 1 or (size and runs[size - 1] == 255):
            return -1, 0
        held[KIND], held[GAPS], held[SIZE] = RUNS, address, size
        last = first + _sum(runs) + changed - 1
        return (at if last < lanes else -1), size
    if form != 1 or at >= stop or data[at] > 4:
        return -1, 0
    planes = np.int64(data[at])
    at += 1
    size = planes * (changed - 1)
    if size > room.size:
        return -1, 0
    last = first + changed - 1
    for plane in range(planes):
        mine = room[plane * (changed - 1) : (plane + 1) * (changed - 1)]
        own = np.int64(mine.ctypes.data)
        address, at = _stream(base, data, at, stop, mine.size, own, zstd)
        if address == 0:
            return -1, 0
        values = bytes_at(address, mine.size)
        if address != own:
            fill(mine, values)
        last += _sum(values) << (8 * plane)
    held[KIND], held[GAPS], held[SIZE] = PLANES, np.int64(room.ctypes.data), planes
    return (at if last < lanes else -1), size
