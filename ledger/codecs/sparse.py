"""Some lanes changed: their positions and their differences."""

import numpy as np

from weightledger.ledger.codecs import gaps, planes
from weightledger.ledger.codecs.delta import Delta, changed_lanes
from weightledger.ledger.codecs.streams import Reader, u32
from weightledger.ledger.errors import CorruptLedger


class Sparse:
    """`sparse.1`: u32 number of changed lanes and, unless it is 0, their positions (`gaps`),
    then the byte planes of their zigzagged differences (`planes`).
    """

    id = "sparse.1"

    def encode(self, delta: Delta) -> bytes:
        """The delta's bytes."""
        delta = changed_lanes(delta)
        if delta.indices is None or not delta.changed:
            return u32(0)
        return b"".join(
            (u32(delta.changed), gaps.encode(delta.indices), planes.encode_signed(delta.difference))
        )

    def decode(
        self, data: bytes | memoryview, count: int, dtype: np.dtype[np.unsignedinteger]
    ) -> Delta:
        """The delta of `count` lanes of `dtype`; raises CorruptLedger."""
        reader = Reader(data)
        changed = reader.u32()
        if changed > count:
            raise CorruptLedger(f"{changed} changed lanes in a frame of {count}")
        indices = gaps.decode(reader, changed, count) if changed else np.zeros(0, np.int32)
        difference = planes.decode_signed(reader, changed, dtype) if changed else np.zeros(0, dtype)
        reader.end()
        return Delta(count, indices, difference)
