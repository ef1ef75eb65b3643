"""Which of zstd's ways packs a stream smaller: both are tried and one is used in one call.

It runs without Python's lock, which threads would else pass back and forth for each of its parts.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.codecs.calling import called_with_five
from weightledger.ledger.tensors.compiling import compiled

# Both ways are tried on this much of a long stream: from a quarter and from three quarters on.
SAMPLE = 1 << 13
# At nearly equal size frequencies are read twice as fast.
_BONUS = 0.98

_BY_MATCHES, _BY_FREQUENCIES, _COMPRESS = range(3)


@compiled
def _packed(way: int, values: NDArray[np.uint8], out: NDArray[np.uint8], zstd: Any) -> Any:
    """The size of `values` packed to `out`, or a negative error."""
    return called_with_five(
        zstd[_COMPRESS],
        zstd[way],
        np.int64(out.ctypes.data),
        out.size,
        np.int64(values.ctypes.data),
        values.size,
    )


@compiled
def smaller(
    values: NDArray[np.uint8], room: NDArray[np.uint8], zstd: NDArray[np.int64]
) -> tuple[int, int]:
    """Pack `values` to one row of `room` [2, as long as zstd needs at most]: which, and its size.

    `zstd` has a context for each way and the address of ZSTD_compress2. The size is negative where
    that fails.
    """
    size = values.size
    if size <= 2 * SAMPLE:
        one = _packed(_BY_MATCHES, values, room[0], zstd)
        other = _packed(_BY_FREQUENCIES, values, room[1], zstd)
        if other < 0 or 0 <= one < _BONUS * other:
            return _BY_MATCHES, one
        return _BY_FREQUENCIES, other
    one = other = 0
    for start in (size // 4, size * 3 // 4 - SAMPLE):
        sample = values[start : start + SAMPLE]
        one += _packed(_BY_MATCHES, sample, room[0], zstd)
        other += _packed(_BY_FREQUENCIES, sample, room[1], zstd)
    way = _BY_MATCHES if one < _BONUS * other else _BY_FREQUENCIES
    return way, _packed(way, values, room[way], zstd)
