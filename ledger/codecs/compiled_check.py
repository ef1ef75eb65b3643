"""Whether encoded bytes are of a delta, told in one call without decoding it elsewhere first."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.codecs.calling import bytes_at
from weightledger.ledger.codecs.compiled_frames import (
    CHANGED,
    DENSE,
    GAPS,
    KIND,
    NEXT,
    RUNS,
    SIZE,
    UNKNOWN,
    kind_at,
    read_gaps,
    read_values,
    u32,
)
from weightledger.ledger.tensors.compiling import compiled
from weightledger.ledger.tensors.spec import Lanes


@compiled
def _same_positions(held: NDArray[np.int64], positions: NDArray[np.int32]) -> bool:
    """Whether gaps that were read lead from position to position."""
    at, byte, one = np.uint64(held[NEXT]), np.uint64(0), np.uint64(1)
    other = np.uint64(0)
    if held[KIND] == RUNS:
        runs = bytes_at(held[GAPS], held[SIZE])
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
    gaps_of_each = np.uint64(held[CHANGED] - 1)
    gaps = bytes_at(held[GAPS], held[SIZE] * (held[CHANGED] - 1))
    for entry in range(np.uint64(positions.size)):
        if entry:
            at += one
            for plane in range(np.uint64(held[SIZE])):
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
    kind = kind_at(bytes_at(np.int64(codec_id.ctypes.data), codec_id.size), 0, codec_id.size)
    place: Any = 0
    stop, base = data.size, np.int64(data.ctypes.data)
    data = bytes_at(base, stop)
    changed: Any = np.int64(0)
    if kind == UNKNOWN:
        return False
    if kind == DENSE:
        changed = np.int64(lanes)
    if kind == RUNS:
        if stop < 4:
            return False
        changed = u32(data, 0)
        place = 4
    if changed != difference.size or positions.size != (changed if kind == RUNS else 0):
        return False
    held[CHANGED] = changed
    if kind == RUNS and changed:
        place, _ = read_gaps(base, data, place, stop, lanes, held, room, zstd)
        if place < 0 or not _same_positions(held, positions):
            return False
    if changed:
        out = values[:changed]
        own = np.int64(plane.ctypes.data)
        place = read_values(base, data, place, stop, own, zstd, False, out)
        if place != stop:
            return False
        other = difference.dtype.type(0)
        for entry in range(difference.size):
            other |= out[entry] ^ difference[entry]
        return not other
    return bool(place == stop)
