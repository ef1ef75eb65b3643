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

from weightledger.ledger.codecs import loops, planes
from weightledger.ledger.codecs.delta import Indices
from weightledger.ledger.codecs.streams import Reader, stream, u32
from weightledger.ledger.errors import CorruptLedger

_RUNS, _PLANES = 0, 1
_U32 = np.dtype(np.uint32)
LONG_MEAN = 256


def encode(indices: Indices) -> bytes:
    """The positions `indices`: at least one, ascending, none twice.

    Raises ValueError where they are found not to ascend; `frames` compares what it wrote besides.
    """
    first = int(indices[0])
    gaps = len(indices) - 1
    span = int(indices[-1]) - first
    if span == gaps or span > LONG_MEAN * gaps:
        lengths = np.diff(indices) - 1
        return bytes([_PLANES]) + u32(first) + planes.encode(lengths.view(np.uint32))
    # Ascending positions have no more gaps of 255 between them than their span has.
    runs = np.empty(gaps + max(span, 0) // 255, np.uint8)
    size = loops.to_runs(indices, runs)
    if size > len(runs):
        raise ValueError("positions do not ascend")
    return bytes([_RUNS]) + u32(first) + u32(size) + stream(runs[:size])


def decode(reader: Reader, changed: int, count: int) -> Indices:
    """`changed` (at least one) ascending positions below `count`; raises CorruptLedger."""
    form = reader.u8()
    first = reader.u32()
    if first >= count:
        raise CorruptLedger(f"position {first} lies outside the frame of {count} lanes")
    indices = np.empty(changed, np.int32)
    indices[0] = first
    if form == _PLANES:
        steps = planes.decode(reader, changed - 1, _U32).astype(np.int64) + 1
        # Steps of at most 33 bits cannot overflow the sum of the at most 2^20 of a frame.
        sums = first + np.cumsum(steps)
        last = int(sums[-1]) if changed > 1 else first
        if last < count:
            indices[1:] = sums
    elif form == _RUNS:
        size = reader.u32()
        if not changed - 1 <= size <= changed - 1 + count // 255:
            raise CorruptLedger(f"{changed} positions in {count} lanes do not take {size} bytes")
        runs = reader.stream(size)
        # At most 2^20 + 2^12 bytes of at most 255.
        if loops.from_runs(runs, indices) != changed or (size and runs[-1] == 255):
            raise CorruptLedger(f"{changed} positions were recorded, their gaps are of others")
        last = int(indices[-1])
    else:
        raise CorruptLedger(f"positions have the unknown form {form}")
    if last >= count:
        raise CorruptLedger(f"position {last} lies outside the frame of {count} lanes")
    return indices
