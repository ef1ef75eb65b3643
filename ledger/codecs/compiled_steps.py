"""A tensor's lanes taken through several encoded deltas in one call, without Python's lock.

Decoded frame by frame from Python, a tensor takes a dozen short calls for each of its frames, and
threads that do so wait for each other's lock longer than they work. Here frames are read, unpacked
(by zstd's own functions, called by their addresses) and added up tile by tile.

Bytes are as hostile here as anywhere: whatever is not plainly as `sparse`, `dense` and `unchanged`
write it is left, untouched, to them, who tell what is wrong with it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.codecs.calling import bytes_at, called_with_five, called_with_two
from weightledger.ledger.codecs.compiled import compiled, moved
from weightledger.ledger.codecs.delta import TILE_LANES
from weightledger.ledger.codecs.dense import Dense
from weightledger.ledger.codecs.sparse import Sparse
from weightledger.ledger.codecs.unchanged import Unchanged
from weightledger.ledger.tensors.spec import Lanes

# Columns of what is known of a delta in a tile that was read: what kind of frame it is, how many
# entries it has, where its differences begin among all that are held, the address of its gaps, how
# many bytes (of runs) or planes they are, the position of the next entry, which entry and which
# byte of the gaps that is.
_KIND, _CHANGED, _VALUES, _GAPS, _SIZE, _NEXT, _ENTRY, _BYTE = range(8)
COLUMNS = 8
_NONE, _DENSE, _RUNS, _PLANES = range(4)
_UNKNOWN = -1
_SPARSE, _EVERY, _UNCHANGED = (
    np.frombuffer(codec.id.encode("ascii"), np.uint8) for codec in (Sparse, Dense, Unchanged)
)

# Lanes that stay in the processor's cache for all deltas: half of a small one; and its lines.
_PART_BYTES, _LINE_BYTES = 1 << 18, 64
_NOWHERE = 1 << 62

GAPS_BYTES = TILE_LANES + TILE_LANES // 64
"""More than the gaps of a frame take as they are usually written."""


@compiled
def _u32(data: NDArray[np.uint8], at: int) -> Any:
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
def _kind(data: NDArray[np.uint8], at: int, size: Any) -> Any:
    """Which codec's id stands at `at`, as the kind that it is at first."""
    if _is(data, at, size, _SPARSE):
        return _RUNS
    if _is(data, at, size, _EVERY):
        return _DENSE
    return _NONE if _is(data, at, size, _UNCHANGED) else _UNKNOWN


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
    stored = _u32(data, at)
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
def _read_values(
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
def _read_gaps(
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
    changed = held[_CHANGED]
    if stop - at < 5:
        return -1, 0
    form, first = data[at], _u32(data, at + 1)
    at += 5
    if first >= lanes:
        return -1, 0
    held[_NEXT], held[_ENTRY], held[_BYTE] = first, 0, 0
    if form == 0:
        if stop - at < 4:
            return -1, 0
        size = _u32(data, at)
        if not changed - 1 <= size <= changed - 1 + lanes // 255 or size > room.size:
            return -1, 0
        address, at = _stream(base, data, at + 4, stop, size, np.int64(room.ctypes.data), zstd)
        if address == 0:
            return -1, 0
        runs = bytes_at(address, size)
        if _ends(runs) != changed - 1 or (size and runs[size - 1] == 255):
            return -1, 0
        held[_KIND], held[_GAPS], held[_SIZE] = _RUNS, address, size
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
            mine[:] = values
        last += _sum(values) << (8 * plane)
    held[_KIND], held[_GAPS], held[_SIZE] = _PLANES, np.int64(room.ctypes.data), planes
    return (at if last < lanes else -1), size


@compiled
def _move_some(
    tile: Lanes, stop: int, held: NDArray[np.int64], values: Lanes, ordered: bool
) -> None:
    """Move what one delta has to move up to the lane `stop`, from where it came to before."""
    lane = tile.dtype.type
    top = lane(tile.itemsize * 8 - 1)
    if held[_NEXT] >= stop:
        return
    # Unsigned: an index that could be negative would be looked at first, each time.
    at, entry, byte = np.uint64(held[_NEXT]), np.uint64(held[_ENTRY]), np.uint64(held[_BYTE])
    changed, end, one = np.uint64(held[_CHANGED]), np.uint64(stop), np.uint64(1)
    if held[_KIND] == _RUNS:
        runs = bytes_at(held[_GAPS], held[_SIZE])
        while at < end:
            tile[at] = moved(tile[at], values[entry], top, ordered, False)
            entry += one
            if entry == changed:
                at = np.uint64(_NOWHERE)
            else:
                run = np.uint64(runs[byte])
                byte += one
                while run == np.uint64(255):
                    at += run
                    run = np.uint64(runs[byte])
                    byte += one
                at += run + one
    else:
        planes = np.uint64(held[_SIZE])
        gaps = bytes_at(held[_GAPS], held[_SIZE] * (held[_CHANGED] - 1))
        while at < end:
            tile[at] = moved(tile[at], values[entry], top, ordered, False)
            entry += one
            if entry == changed:
                at = np.uint64(_NOWHERE)
            else:
                at += one
                for plane in range(planes):
                    gap = np.uint64(gaps[plane * (changed - one) + entry - one])
                    at += gap << np.uint64(np.uint64(8) * plane)
    held[_NEXT], held[_ENTRY], held[_BYTE] = np.int64(at), np.int64(entry), np.int64(byte)


@compiled
def _move_tile(tile: Lanes, held: NDArray[np.int64], values: Lanes, ordered: bool) -> Any:
    """Add what deltas that were read have to add to a tile, part after part of it.

    Where most lines of the cache are written to they are fetched first, as in
    `compiled.move_several`; what was fetched is returned for the same reason.
    """
    lane = tile.dtype.type
    top = lane(tile.itemsize * 8 - 1)
    part, line = _PART_BYTES // tile.itemsize, _LINE_BYTES // tile.itemsize
    entries = 0
    for delta in range(held.shape[0]):
        entries += held[delta, _CHANGED]
    some = lane(0)
    for start in range(0, tile.size, part):
        stop = min(start + part, tile.size)
        if entries * 4 * line > tile.size:
            for at in range(start, stop, line):
                some |= tile[at]
        for delta in range(held.shape[0]):
            first = held[delta, _VALUES]
            steps = values[first : first + held[delta, _CHANGED]]
            if held[delta, _KIND] == _DENSE:
                some_lanes, some_steps = tile[start:stop], steps[start:stop]
                for at in range(some_lanes.size):
                    some_lanes[at] = moved(some_lanes[at], some_steps[at], top, ordered, False)
            elif held[delta, _KIND] != _NONE:
                _move_some(tile, stop, held[delta], steps, ordered)
    return some


@compiled
def take_through(
    bits: Lanes,
    addresses: NDArray[np.int64],
    sizes: NDArray[np.int64],
    undo: NDArray[np.bool_],
    ordered: bool,
    values: Lanes,
    plane: NDArray[np.uint8],
    room: NDArray[np.uint8],
    held: NDArray[np.int64],
    zstd: NDArray[np.int64],
    reached: NDArray[np.int64],
) -> Any:
    """Take `bits` through the deltas of a tensor whose frames are at `addresses`, `sizes` bytes.

    There is room: in `values` for the differences of a frame, in `plane` for as many bytes, in
    `room` for gaps that are unpacked (`GAPS_BYTES`), in `held` [deltas, COLUMNS] for what is known
    of deltas. `zstd` has a context for decompressing and the addresses of ZSTD_decompressDCtx,
    ZSTD_getFrameContentSize and ZSTD_findFrameCompressedSize.

    Writes to `reached` the lane that a tile begins at and how many deltas were added to it; all
    tiles before it are done, nothing was written after it, and that tile's next delta is not as it
    is usually written, or the tensor is done. Returns nothing of use.
    """
    lane = bits.dtype.type
    deltas = addresses.size
    at = np.zeros(deltas, np.int64)  # where each delta's next frame begins
    body = np.zeros(deltas, np.int64)
    kinds = np.zeros(deltas, np.int64)
    some = lane(0)
    start: Any = 0
    reached[:] = 0
    while start < bits.size:
        lanes: Any = np.int64(0)
        for delta in range(deltas):
            data = bytes_at(addresses[delta], sizes[delta])
            left = sizes[delta] - at[delta]
            if left < 1 or left < 9 + np.int64(data[at[delta]]):
                return some
            name = np.int64(data[at[delta]])
            kinds[delta] = _kind(data, at[delta] + 1, name)
            own = _u32(data, at[delta] + 1 + name)
            size = _u32(data, at[delta] + 5 + name)
            body[delta] = at[delta] + 9 + name
            at[delta] = body[delta] + size
            if delta == 0:
                lanes = own
            if (
                kinds[delta] == _UNKNOWN
                or own != lanes
                or not 0 < own <= min(TILE_LANES, bits.size - start)
                or at[delta] > sizes[delta]
                or (start + own == bits.size) != (at[delta] == sizes[delta])
            ):
                return some
        tile = bits[start : start + lanes]
        first, taken, used = 0, 0, 0
        place: Any
        changed: Any
        for delta in range(deltas):
            data = bytes_at(addresses[delta], at[delta])
            place, stop, kind = body[delta], at[delta], kinds[delta]
            changed = lanes if kind == _DENSE else np.int64(0)
            if kind == _RUNS:
                if stop - place < 4:
                    break
                changed = _u32(data, place)
                place += 4
                if changed > lanes:
                    break
                if not changed:
                    kind = _NONE
            if taken + changed > values.size or used + changed + lanes // 64 > room.size:
                some |= _move_tile(tile, held[first:delta], values, ordered)
                reached[1] = first = delta
                taken = used = 0
            mine = held[delta]
            mine[_KIND], mine[_CHANGED], mine[_VALUES] = kind, changed, taken
            if kind == _RUNS:
                place, size = _read_gaps(
                    addresses[delta], data, place, stop, lanes, mine, room[used:], zstd
                )
                if place < 0:
                    break
                used += size
            if kind != _NONE:
                place = _read_values(
                    addresses[delta],
                    data,
                    place,
                    stop,
                    np.int64(plane.ctypes.data),
                    zstd,
                    undo[delta],
                    values[taken : taken + changed],
                )
                taken += changed
            if place != stop:
                break
            reached[1] = delta + 1
        done = reached[1]
        some |= _move_tile(tile, held[first:done], values, ordered)
        if done < deltas:
            return some
        start += lanes
        reached[0], reached[1] = start, 0
    return some


@compiled
def _same_positions(held: NDArray[np.int64], positions: NDArray[np.int32]) -> bool:
    """Whether gaps that were read lead from position to position."""
    at, byte, one = np.uint64(held[_NEXT]), np.uint64(0), np.uint64(1)
    other = np.uint64(0)
    if held[_KIND] == _RUNS:
        runs = bytes_at(held[_GAPS], held[_SIZE])
        for entry in range(np.uint64(positions.size)):
            if entry:
                run = np.uint64(runs[byte])
                byte += one
                while run == np.uint64(255):
                    at += run
                    run = np.uint64(runs[byte])
                    byte += one
                at += run + one
            other |= at ^ np.uint64(positions[entry])
        return bool(other == np.uint64(0))
    gaps_of_each = np.uint64(held[_CHANGED] - 1)
    gaps = bytes_at(held[_GAPS], held[_SIZE] * (held[_CHANGED] - 1))
    for entry in range(np.uint64(positions.size)):
        if entry:
            at += one
            for plane in range(np.uint64(held[_SIZE])):
                gap = np.uint64(gaps[plane * gaps_of_each + entry - one])
                at += gap << np.uint64(np.uint64(8) * plane)
        other |= at ^ np.uint64(positions[entry])
    return bool(other == np.uint64(0))


@compiled
def says(
    codec_id: NDArray[np.uint8],
    data: NDArray[np.uint8],
    lanes: int,
    positions: NDArray[np.int32],
    difference: Lanes,
    values: Lanes,
    plane: NDArray[np.uint8],
    room: NDArray[np.uint8],
    held: NDArray[np.int64],
    zstd: NDArray[np.int64],
) -> bool:
    """Whether a delta encoded in `data` is this one of `lanes` lanes, plainly.

    `positions` is empty where every lane has a difference. The rest is as in `take_through`, with
    `held` [COLUMNS].
    """
    kind = _kind(bytes_at(np.int64(codec_id.ctypes.data), codec_id.size), 0, codec_id.size)
    place: Any = 0
    stop, base = data.size, np.int64(data.ctypes.data)
    data = bytes_at(base, stop)
    changed: Any = np.int64(0)
    if kind == _UNKNOWN:
        return False
    if kind == _DENSE:
        changed = np.int64(lanes)
    if kind == _RUNS:
        if stop < 4:
            return False
        changed = _u32(data, 0)
        place = 4
    if changed != difference.size or positions.size != (changed if kind == _RUNS else 0):
        return False
    held[_CHANGED] = changed
    if kind == _RUNS and changed:
        place, _ = _read_gaps(base, data, place, stop, lanes, held, room, zstd)
        if place < 0 or not _same_positions(held, positions):
            return False
    if changed:
        out = values[:changed]
        own = np.int64(plane.ctypes.data)
        place = _read_values(base, data, place, stop, own, zstd, False, out)
        if place != stop:
            return False
        other = difference.dtype.type(0)
        for entry in range(difference.size):
            other |= out[entry] ^ difference[entry]
        return not other
    return bool(place == stop)
