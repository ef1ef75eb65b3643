"""How zstd packs a stream: by matches, by how often each byte comes or by runs of zeros, whichever
makes it smaller.

Bytes of differences rarely repeat in sequences, and where zstd takes chance repetitions for matches
it writes half as much again as their frequencies would take. So it is also asked to find none
(the most negative level) and to code all bytes by their frequency (literal compression, which
negative levels leave out otherwise). Of a stream that is nearly empty, as the highest bytes of
small differences are, it is told what to take for matches: each run of zeros, also those too short
for its own search, which takes three times as long and leaves a third more. Only zstd's C interface
has these, which the package gives through cffi; without it streams are packed by matches. Whichever
way they are plain zstd frames, which any decoder of zstd reads.
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


class Packer:
    """zstd's contexts for each way, `zstd` with their addresses and those of what compresses and of
    the runs it is told, and `room` for what two ways write. Only where it is `within_reach`, and
    for one thread at a time."""

    def __init__(self) -> None:
        contexts = (
            _context(_MATCHES),
            _context(_FREQUENCIES, literals=True),
            _context(_MATCHES, literals=True),
        )
        compress = [
            _zstd.ffi.addressof(_zstd.lib, name)
            for name in ("ZSTD_compress2", "ZSTD_compressSequences")
        ]
        self._contexts = contexts  # as long as their addresses are
        addresses = [int(_zstd.ffi.cast("intptr_t", one)) for one in (*contexts, *compress)]
        self.zstd = np.array([*addresses, 0], np.int64)
        self.room = np.empty((2, 0), np.uint8)

    def fit(self, size: int) -> None:
        """Make room for what streams of up to so many bytes may take."""
        most = _zstd.lib.ZSTD_compressBound(size)
        if self.room.shape[1] < most:
            from weightledger.ledger.codecs.compiled_packing import sequences_bytes

            self.room = np.empty((2, most), np.uint8)
            self._sequences = np.empty(sequences_bytes(size), np.uint8)
            self.zstd[-1] = self._sequences.ctypes.data


class _Ways(threading.local):
    """zstd contexts are not for two threads at once; a new one costs more than most streams."""

    def __init__(self) -> None:
        self.by_matches = zstandard.ZstdCompressor(level=_MATCHES).compress
        if within_reach():
            self.packer = Packer()


def within_reach() -> bool:
    """Whether zstd's own functions are."""
    return _zstd is not None


def pack(values: NDArray[np.uint8]) -> bytes:
    """A zstd frame that declares its content, which is `values`; it may be longer than they are.

    Raises MemoryError where zstd fails: there is room for what it writes at most, so it has no
    other reason.
    """
    ways = _ways
    if not within_reach():
        return ways.by_matches(values.data)
    from weightledger.ledger.codecs import compiled_packing

    packer = ways.packer
    packer.fit(len(values))
    way, size = compiled_packing.smaller(np.ascontiguousarray(values), packer.room, packer.zstd)
    if size < 0:
        raise MemoryError(f"zstd cannot pack a stream: error {-size}")
    packed: bytes = packer.room[way, :size].tobytes()
    return packed


def _context(level: int, *, literals: bool = False) -> Any:
    context = _zstd.ffi.gc(_zstd.lib.ZSTD_createCCtx(), _zstd.lib.ZSTD_freeCCtx)
    parameters = [(_zstd.lib.ZSTD_c_compressionLevel, level)]
    if literals:
        parameters.append((_zstd.lib.ZSTD_c_literalCompressionMode, 1))
    for parameter, value in parameters:
        if _zstd.lib.ZSTD_isError(_zstd.lib.ZSTD_CCtx_setParameter(context, parameter, value)):
            raise MemoryError("zstd cannot be set up")
    return context


_ways = _Ways()
