"""Every lane has a difference: for frames in which most lanes changed."""

import numpy as np

from weightledger.ledger.codecs import planes
from weightledger.ledger.codecs.delta import Delta, every_lane
from weightledger.ledger.codecs.streams import Reader


class Dense:
    """`dense.1`: the byte planes of the zigzagged differences of all lanes."""

    id = "dense.1"

    def encode(self, delta: Delta) -> bytes:
        """The delta's bytes; lanes without an entry are recorded as zero."""
        return planes.encode_signed(every_lane(delta).difference)

    def decode(
        self, data: bytes | memoryview, count: int, dtype: np.dtype[np.unsignedinteger]
    ) -> Delta:
        """The delta of `count` lanes of `dtype`; raises CorruptLedger."""
        reader = Reader(data)
        difference = planes.decode_signed(reader, count, dtype)
        reader.end()
        return Delta(count, None, difference)
