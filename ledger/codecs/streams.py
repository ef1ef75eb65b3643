"""Byte streams inside a frame: zstd where it pays, raw where not, and a reader that trusts nothing.

A stream of n bytes is a u32 (little-endian) with the size that follows, then that many bytes:
exactly n means raw, fewer a zstd frame that declares n bytes of content.
"""

import struct
import threading

import numpy as np
import zstandard
from numpy.typing import NDArray

from weightledger.ledger.codecs.packing import pack
from weightledger.ledger.errors import CorruptLedger

_U32 = struct.Struct("<I")
# Below this a stream stays raw: zstd would take more of a small update's time than it could save.
SHORTEST_PACKED = 512
WORTHWHILE = 0.98
# No stream is longer than 8 MiB, so no honest frame has a larger window.
_MAX_WINDOW = 1 << 23


class _Zstd(threading.local):
    """zstd contexts are not for two threads at once; a new one costs more than most streams."""

    def __init__(self) -> None:
        self.decompress = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompress


_zstd = _Zstd()


def u32(value: int) -> bytes:
    """A 32-bit little-endian unsigned integer."""
    return _U32.pack(value)


def stream(values: NDArray[np.uint8]) -> bytes:
    """The bytes `values` as a stream."""
    if len(values) >= SHORTEST_PACKED:
        packed = pack(values)
        if len(packed) < WORTHWHILE * len(values):
            return _U32.pack(len(packed)) + packed
    return _U32.pack(len(values)) + values.tobytes()


class Reader:
    """Reads the parts of an encoded frame in order; anything amiss raises CorruptLedger."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes."""
        part = self._data[self._at : self._at + size]
        if len(part) != size:
            raise CorruptLedger(f"encoded delta ends {size - len(part)} bytes early")
        self._at += size
        return part

    def u8(self) -> int:
        """The next byte as a number."""
        return self.take(1)[0]

    def u32(self) -> int:
        """The next four bytes as a number."""
        value: int = _U32.unpack(self.take(4))[0]
        return value

    def stream(self, size: int) -> NDArray[np.uint8]:
        """The next stream, which must hold `size` bytes."""
        stored = self.u32()
        if stored > size:
            raise CorruptLedger(f"a stream of {size} bytes claims to take {stored}")
        packed = self.take(stored)
        if stored == size:
            return np.frombuffer(packed, np.uint8)
        try:
            if zstandard.frame_content_size(packed) != size:
                raise CorruptLedger(f"a stream of {size} bytes declares another length")
            plain = _zstd.decompress(packed, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptLedger(f"a stream does not decompress: {error}") from error
        if len(plain) != size:
            raise CorruptLedger(f"a stream of {size} bytes decompresses to {len(plain)}")
        return np.frombuffer(plain, np.uint8)

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._at

    def end(self) -> None:
        """Raise CorruptLedger if bytes are left."""
        if self.left:
            raise CorruptLedger(f"{self.left} bytes follow the encoded delta")
