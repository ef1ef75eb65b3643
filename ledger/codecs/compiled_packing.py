"""Which of zstd's ways packs a stream smaller: two are tried and one is used in one call.

It runs without Python's lock, which threads would else pass back and forth for each of its parts.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.codecs.calling import bytes_at, called_with_five, called_with_seven
from weightledger.ledger.tensors.compiling import compiled

# Both ways are tried on this much of a long stream: from a quarter and from three quarters on.
SAMPLE = 1 << 13
# At nearly equal size frequencies are read twice as fast.
_BONUS = 0.98

# Where no more than this part of the bytes is not zero they are packed by runs of zeros; by its
# frequency a byte takes a bit at least, which is more.
_NEARLY_EMPTY = 1 / 8
_APART = 16  # of the bytes that are looked at for that
# The shortest run that is told from literals: the zero that it repeats and zstd's shortest match.
_SHORTEST_RUN = 4

_BY_MATCHES, _BY_FREQUENCIES, _BY_RUNS, _COMPRESS, _COMPRESS_RUNS, _SEQUENCES = range(6)
# Of a sequence: how far back, how many literals before it, how long, and one that zstd ignores.
_NUMBERS = 4


@compiled
def sequences_bytes(size: int) -> int:
    """What the sequences take of as many runs of zeros as so many bytes can have."""
    return 4 * _NUMBERS * (size // (_SHORTEST_RUN + 1) + 1)


@compiled
def _to_sequences(values: NDArray[np.uint8], sequences: NDArray[np.uint32]) -> Any:
    """Write the runs of zeros, each as repetitions of its first; how many there are."""
    count = at = literals = 0
    while at < values.size:
        if values[at]:
            at += 1
            continue
        stop = at + 1
        while stop < values.size and not values[stop]:
            stop += 1
        if stop - at >= _SHORTEST_RUN:
            sequences[_NUMBERS * count] = 1
            sequences[_NUMBERS * count + 1] = at + 1 - literals
            sequences[_NUMBERS * count + 2] = stop - at - 1
            sequences[_NUMBERS * count + 3] = 0
            count += 1
            literals = stop
        at = stop
    return count


@compiled
def _packed(way: int, values: NDArray[np.uint8], out: NDArray[np.uint8], zstd: Any) -> Any:
    """The size of `values` packed to `out`, or a negative error."""
    if way == _BY_RUNS:
        room = sequences_bytes(values.size)
        sequences = bytes_at(zstd[_SEQUENCES], room).view(np.uint32)
        count = _to_sequences(values, sequences)
        return called_with_seven(
            zstd[_COMPRESS_RUNS],
            zstd[way],
            np.int64(out.ctypes.data),
            out.size,
            zstd[_SEQUENCES],
            np.int64(count),
            np.int64(values.ctypes.data),
            values.size,
        )
    return called_with_five(
        zstd[_COMPRESS],
        zstd[way],
        np.int64(out.ctypes.data),
        out.size,
        np.int64(values.ctypes.data),
        values.size,
    )


@compiled
def _there(values: NDArray[np.uint8]) -> Any:
    """The share of the bytes that are not zero, by some of them."""
    there = looked = 0
    for at in range(0, values.size, _APART):
        looked += 1
        if values[at]:
            there += 1
    return there / looked


@compiled
def smaller(
    values: NDArray[np.uint8], room: NDArray[np.uint8], zstd: NDArray[np.int64]
) -> tuple[int, int]:
    """Pack `values` to one row of `room` [2, as long as zstd needs at most]: which, and its size.

    `zstd` has a context for each way, the addresses of ZSTD_compress2 and ZSTD_compressSequences,
    and that of room for `sequences_bytes`. The size is negative where that fails.
    """
    size = values.size
    if size <= 2 * SAMPLE:
        way = _BY_RUNS if _there(values) <= _NEARLY_EMPTY else _BY_FREQUENCIES
        one = _packed(_BY_MATCHES, values, room[0], zstd)
        other = _packed(way, values, room[1], zstd)
        if other < 0 or 0 <= one < _BONUS * other:
            return 0, one
        return 1, other
    first, second = size // 4, size * 3 // 4 - SAMPLE
    there = _there(values[first : first + SAMPLE]) + _there(values[second : second + SAMPLE])
    way = _BY_RUNS if there / 2 <= _NEARLY_EMPTY else _BY_FREQUENCIES
    one = other = 0
    for start in (first, second):
        sample = values[start : start + SAMPLE]
        one += _packed(_BY_MATCHES, sample, room[0], zstd)
        other += _packed(way, sample, room[1], zstd)
    if one < _BONUS * other:
        way = _BY_MATCHES
    return 0, _packed(way, values, room[0], zstd)
