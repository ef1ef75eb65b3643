"""How zstd packs a stream: by matches or by how often each byte comes, whichever makes it smaller.

Bytes of differences rarely repeat in sequences, and where zstd takes chance repetitions for matches
it writes half as much again as their frequencies would take. So it is also asked to find none
(the most negative level) and to code all bytes by their frequency (literal compression, which
negative levels leave out otherwise). Only zstd's C interface has that switch, which the package
gives through cffi; without it streams are packed by matches. Either way they are plain zstd frames,
which any decoder of zstd reads.
"""

import threading
from importlib import import_module
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

try:
    _zstd: Any = import_module("zstandard._cffi")
except ImportError:  # a build without cffi
    _zstd = None

_MATCHES, _FREQUENCIES = 1, -131_072  # zstd's levels; of the latter it has no other use
# Both ways are tried on this much of a long stream: from a quarter and from three quarters on.
_SAMPLE = 1 << 13
# At nearly equal size frequencies are read twice as fast.
_BONUS = 0.98


class _Ways(threading.local):
    """zstd contexts are not for two threads at once; a new one costs more than most streams."""

    def __init__(self) -> None:
        self.by_matches = zstandard.ZstdCompressor(level=_MATCHES).compress
        self.by_frequencies = None if _zstd is None else _Frequencies()


def pack(values: NDArray[np.uint8]) -> bytes:
    """A zstd frame that declares its content, which is `values`; it may be longer than they are."""
    by_matches, by_frequencies = _ways.by_matches, _ways.by_frequencies
    if by_frequencies is None:
        return by_matches(values.data)
    if len(values) <= 2 * _SAMPLE:
        one, other = by_matches(values.data), by_frequencies(values)
        return one if len(one) < _BONUS * len(other) else other
    starts = (len(values) // 4, len(values) * 3 // 4 - _SAMPLE)
    samples = [values[start : start + _SAMPLE] for start in starts]
    matched = sum(len(by_matches(sample.data)) for sample in samples)
    if matched < _BONUS * sum(len(by_frequencies(sample)) for sample in samples):
        return by_matches(values.data)
    return by_frequencies(values)


class _Frequencies:
    """zstd without matches.

    Raises MemoryError where zstd fails: there is room for what it writes at most, so it has no
    other reason.
    """

    def __init__(self) -> None:
        self._context = _zstd.ffi.gc(_zstd.lib.ZSTD_createCCtx(), _zstd.lib.ZSTD_freeCCtx)
        for parameter, value in (
            (_zstd.lib.ZSTD_c_compressionLevel, _FREQUENCIES),
            (_zstd.lib.ZSTD_c_literalCompressionMode, 1),
        ):
            _checked(_zstd.lib.ZSTD_CCtx_setParameter(self._context, parameter, value))
        self._room: Any = np.empty(0, np.uint8)

    def __call__(self, values: NDArray[np.uint8]) -> bytes:
        most = _zstd.lib.ZSTD_compressBound(len(values))
        if len(self._room) < most:
            self._room = np.empty(most, np.uint8)
        room, given = _zstd.ffi.from_buffer(self._room), _zstd.ffi.from_buffer(values)
        size = _checked(
            _zstd.lib.ZSTD_compress2(self._context, room, len(self._room), given, len(values))
        )
        packed: bytes = self._room[:size].tobytes()
        return packed


def _checked(result: int) -> int:
    if _zstd.lib.ZSTD_isError(result):
        reason = _zstd.ffi.string(_zstd.lib.ZSTD_getErrorName(result)).decode()
        raise MemoryError(f"zstd cannot pack a stream: {reason}")
    return result


_ways = _Ways()
