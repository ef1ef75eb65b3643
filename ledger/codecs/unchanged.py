"""Nothing changed in the frame: no bytes at all."""

import numpy as np

from weightledger.ledger.codecs.delta import Delta, changed_lanes
from weightledger.ledger.codecs.streams import Reader
from weightledger.ledger.tensors.spec import Lanes


class Unchanged:
    """`none.1`: zero bytes."""

    id = "none.1"

    def encode(self, delta: Delta) -> bytes:
        """Nothing; raises ValueError if the delta changes a lane."""
        if changed_lanes(delta).changed:
            raise ValueError("none.1 cannot encode a delta that changes lanes")
        return b""

    def decode(
        self, data: bytes | memoryview, count: int, dtype: np.dtype[np.unsignedinteger]
    ) -> Delta:
        """A delta of `count` lanes that changes none; raises CorruptLedger."""
        Reader(data).end()
        nothing: Lanes = np.zeros(0, dtype)
        return Delta(count, np.zeros(0, np.int32), nothing)
