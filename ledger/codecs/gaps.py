"""Ascending positions as the gaps between them: about their entropy when they are scattered.

Encoded: u8 form, u32 first position, then the gaps (unchanged lanes between two positions):

    form 0, gaps near 256 or below
        u32 number of bytes, then them as a stream: a gap is 255 for each whole 255 in it,
        then the rest.
    form 1, longer gaps, or none at all
        the gaps as byte planes (`planes`).

There is at least one position. Whatever the bytes, what is decoded ascends.
"""

import numpy as np

from ledger.codecs import planes
from ledger.codecs.delta import Indices
from ledger.codecs.streams import Reader, stream, u32
from ledger.errors import CorruptLedger

_RUNS, _PLANES = 0, 1
_U32 = np.dtype(np.uint32)
_LONG_MEAN = 256


def encode(indices: Indices) -> bytes:
    """The positions `indices`: at least one, ascending, none twice."""
    first = int(indices[0])
    gaps = np.diff(indices)
    gaps -= 1
    span = int(indices[-1]) - first
    if span == len(gaps) or span > _LONG_MEAN * len(gaps):
        return bytes([_PLANES]) + u32(first) + planes.encode(gaps.view(np.uint32))
    if int(gaps.max()) < 255:
        runs = gaps.astype(np.uint8)
    else:
        whole = gaps // 255
        ends = np.cumsum(whole + 1)
        runs = np.full(ends[-1], 255, np.uint8)
        runs[ends - 1] = (gaps - whole * 255).astype(np.uint8)
    return bytes([_RUNS]) + u32(first) + u32(len(runs)) + stream(runs)


def decode(reader: Reader, changed: int, count: int) -> Indices:
    """`changed` (at least one) ascending positions below `count`; raises CorruptLedger."""
    form = reader.u8()
    first = reader.u32()
    if form == _PLANES:
        steps = planes.decode(reader, changed - 1, _U32).astype(np.int64)
        # Gaps of at most 32 bits cannot overflow the sum of the at most 2^20 of a frame.
        sums = np.cumsum(steps)
    elif form == _RUNS:
        size = reader.u32()
        if not changed - 1 <= size <= changed - 1 + count // 255:
            raise CorruptLedger(f"{changed} positions in {count} lanes do not take {size} bytes")
        runs = reader.stream(size)
        ends = np.flatnonzero(runs != 255)
        if len(ends) != changed - 1 or (size and runs[-1] == 255):
            raise CorruptLedger(f"{changed} positions were recorded, {len(ends) + 1} found")
        # At most 2^20 + 2^12 bytes of at most 255.
        sums = np.cumsum(runs, dtype=np.int32)
        if size != changed - 1:
            sums = sums[ends]
    else:
        raise CorruptLedger(f"positions have the unknown form {form}")
    last = first + changed - 1 + (int(sums[-1]) if changed > 1 else 0)
    if last >= count:
        raise CorruptLedger(f"position {last} lies outside the frame of {count} lanes")
    indices = np.arange(first, first + changed, dtype=np.int32)
    indices[1:] += sums.astype(np.int32, copy=False)
    return indices
