"""A tensor's lanes taken through several encoded deltas in one call, without Python's lock.

Decoded frame by frame from Python, a tensor takes a dozen short calls for each of its frames, and
threads that do so wait for each other's lock longer than they work. Here frames are read
(`compiled_frames`) and added up tile by tile.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.codecs.calling import bytes_at
from weightledger.ledger.codecs.compiled import in_bits, in_order, moved
from weightledger.ledger.codecs.compiled_frames import (
    BYTE,
    CHANGED,
    DENSE,
    ENTRY,
    GAPS,
    KIND,
    NEXT,
    NONE,
    RUNS,
    SIZE,
    UNKNOWN,
    VALUES,
    kind_at,
    read_gaps,
    read_values,
    u32,
)
from weightledger.ledger.codecs.delta import TILE_LANES
from weightledger.ledger.tensors.compiling import compiled
from weightledger.ledger.tensors.spec import Lanes

# Lanes that stay in the processor's cache for all deltas: half of a small one; and its lines.
_PART_BYTES, _LINE_BYTES = 1 << 18, 64
_NOWHERE = 1 << 62
# From one entry in so many lanes on, it pays to put all of them in order and back.
_ENTRIES_A_LANE = 5


@compiled
def _move_some(
    tile: Lanes, stop: int, held: NDArray[np.int64], values: Lanes, ordered: bool
) -> None:
    """Move what one delta has to move up to the lane `stop`, from where it came to before."""
    lane = tile.dtype.type
    top = lane(tile.itemsize * 8 - 1)
    if held[NEXT] >= stop:
        return
    # Unsigned: an index that could be negative would be looked at first, each time.
    at, entry, byte = np.uint64(held[NEXT]), np.uint64(held[ENTRY]), np.uint64(held[BYTE])
    changed, end, one = np.uint64(held[CHANGED]), np.uint64(stop), np.uint64(1)
    if held[KIND] == RUNS:
        runs = bytes_at(held[GAPS], held[SIZE])
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
        planes = np.uint64(held[SIZE])
        gaps = bytes_at(held[GAPS], held[SIZE] * (held[CHANGED] - 1))
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
    held[NEXT], held[ENTRY], held[BYTE] = np.int64(at), np.int64(entry), np.int64(byte)


@compiled
def _put_in_order(lanes: Lanes) -> None:
    top = lanes.dtype.type(lanes.itemsize * 8 - 1)
    for at in range(lanes.size):
        lanes[at] = in_order(lanes[at], top)


@compiled
def _put_back(lanes: Lanes) -> None:
    top = lanes.dtype.type(lanes.itemsize * 8 - 1)
    for at in range(lanes.size):
        lanes[at] = in_bits(lanes[at], top)


@compiled
def _move_tile(tile: Lanes, held: NDArray[np.int64], values: Lanes, ordered: bool) -> Any:
    """Add what deltas that were read have to add to a tile, part after part of it.

    Where most lines of the cache are written to they are fetched first, as in
    `compiled.move_several`; what was fetched is returned for the same reason. Where there are so
    many entries that it pays, lanes are put into their order once and not for each entry.
    """
    lane = tile.dtype.type
    top = lane(tile.itemsize * 8 - 1)
    part, line = _PART_BYTES // tile.itemsize, _LINE_BYTES // tile.itemsize
    entries = 0
    for delta in range(held.shape[0]):
        entries += held[delta, CHANGED]
    some = lane(0)
    once = ordered and entries * _ENTRIES_A_LANE > tile.size
    each = ordered and not once
    for start in range(0, tile.size, part):
        stop = min(start + part, tile.size)
        if once:
            _put_in_order(tile[start:stop])
        elif entries * 4 * line > tile.size:
            for at in range(start, stop, line):
                some |= tile[at]
        for delta in range(held.shape[0]):
            first = held[delta, VALUES]
            steps = values[first : first + held[delta, CHANGED]]
            if held[delta, KIND] == DENSE:
                some_lanes, some_steps = tile[start:stop], steps[start:stop]
                for at in range(some_lanes.size):
                    some_lanes[at] = moved(some_lanes[at], some_steps[at], top, each, False)
            elif held[delta, KIND] != NONE:
                _move_some(tile, stop, held[delta], steps, each)
        if once:
            _put_back(tile[start:stop])
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
            kinds[delta] = kind_at(data, at[delta] + 1, name)
            own = u32(data, at[delta] + 1 + name)
            size = u32(data, at[delta] + 5 + name)
            body[delta] = at[delta] + 9 + name
            at[delta] = body[delta] + size
            if delta == 0:
                lanes = own
            if (
                kinds[delta] == UNKNOWN
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
            changed = lanes if kind == DENSE else np.int64(0)
            if kind == RUNS:
                if stop - place < 4:
                    break
                changed = u32(data, place)
                place += 4
                if changed > lanes:
                    break
                if not changed:
                    kind = NONE
            if taken + changed > values.size or used + changed + lanes // 64 > room.size:
                some |= _move_tile(tile, held[first:delta], values, ordered)
                reached[1] = first = delta
                taken = used = 0
            mine = held[delta]
            mine[KIND], mine[CHANGED], mine[VALUES] = kind, changed, taken
            if kind == RUNS:
                place, size = read_gaps(
                    addresses[delta], data, place, stop, lanes, mine, room[used:], zstd
                )
                if place < 0:
                    break
                used += size
            if kind != NONE:
                place = read_values(
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
