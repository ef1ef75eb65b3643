"""Unsigned integers as byte planes: all lowest bytes, then all second bytes, and so on.

Small numbers have empty high planes, which are left out; what is left compresses plane by
plane. Encoded: u8 number of planes, then one stream per plane, lowest first.
"""

import numpy as np
from numpy.typing import NDArray

from ledger.codecs.streams import Reader, stream
from ledger.errors import CorruptLedger
from ledger.tensors import Lanes


def encode_signed(difference: Lanes) -> bytes:
    """The planes of modular differences, read as signed and zigzagged: 0, -1, 1, -2, 2 …"""
    bits = difference.itemsize * 8
    sign = difference.view(f"i{difference.itemsize}") >> (bits - 1)
    return encode((difference << difference.dtype.type(1)) ^ sign.view(difference.dtype))


def decode_signed(reader: Reader, count: int, dtype: np.dtype[np.unsignedinteger]) -> Lanes:
    """`count` modular differences of `dtype`; raises CorruptLedger."""
    zigzag = decode(reader, count, dtype)
    one = dtype.type(1)
    fill: Lanes = dtype.type(0) - (zigzag & one)
    return (zigzag >> one) ^ fill


def encode(values: Lanes) -> bytes:
    """The planes of `values`."""
    highest = int(values.max(initial=0))
    planes = (highest.bit_length() + 7) // 8
    return bytes([planes]) + b"".join(
        [stream((values >> 8 * p).astype(np.uint8)) for p in range(planes)]
    )


def decode(reader: Reader, count: int, dtype: np.dtype[np.unsignedinteger]) -> Lanes:
    """`count` values of `dtype`; raises CorruptLedger, also if `dtype` cannot hold them."""
    planes = reader.u8()
    if planes > dtype.itemsize:
        raise CorruptLedger(f"{planes} byte planes do not fit {dtype}")
    if planes == 0:
        return np.zeros(count, dtype)
    values: NDArray[np.unsignedinteger] = reader.stream(count).astype(dtype)
    for plane in range(1, planes):
        values |= reader.stream(count).astype(dtype) << 8 * plane
    return values
