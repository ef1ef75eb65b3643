"""Unsigned integers as byte planes: all lowest bytes, then all second bytes, and so on.

Small numbers have empty high planes, which are left out; what is left compresses plane by
plane. Encoded: u8 number of planes, then one stream per plane, lowest first.
"""

import numpy as np

from weightledger.ledger.codecs import loops
from weightledger.ledger.codecs.streams import Reader, stream
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.tensors.spec import Lanes


def encode_signed(difference: Lanes) -> bytes:
    """The planes of modular differences, read as signed and zigzagged: 0, -1, 1, -2, 2 …"""
    folded = np.empty_like(difference)
    highest = loops.fold(difference, folded)
    return _encode(folded, int(highest))


def decode_signed(reader: Reader, count: int, dtype: np.dtype[np.unsignedinteger]) -> Lanes:
    """`count` modular differences of `dtype`; raises CorruptLedger."""
    return _decode(reader, count, dtype, signed=True)


def encode(values: Lanes) -> bytes:
    """The planes of `values`."""
    return _encode(values, int(values.max(initial=0)))


def decode(reader: Reader, count: int, dtype: np.dtype[np.unsignedinteger]) -> Lanes:
    """`count` values of `dtype`; raises CorruptLedger, also if `dtype` cannot hold them."""
    return _decode(reader, count, dtype, signed=False)


def _encode(values: Lanes, highest: int) -> bytes:
    """The planes up to that of the highest bit of `highest`."""
    planes = np.empty(((highest.bit_length() + 7) // 8, len(values)), np.uint8)
    loops.to_planes(values, planes)
    return bytes([len(planes)]) + b"".join([stream(plane) for plane in planes])


def _decode(
    reader: Reader, count: int, dtype: np.dtype[np.unsignedinteger], *, signed: bool
) -> Lanes:
    number = reader.u8()
    if number > dtype.itemsize:
        raise CorruptLedger(f"{number} byte planes do not fit {dtype}")
    if number == 0:
        return np.zeros(count, dtype)
    planes = np.concatenate([reader.stream(count) for _ in range(number)]).reshape(number, count)
    values: Lanes = np.empty(count, dtype)
    loops.from_planes(planes, signed, values)
    return values
