"""The frame of a few lanes that nearly all changed, written and checked by two loops.

It is byte for byte what `frames.encode_frame` makes of `delta.compare`, which takes a dozen calls
for it: most of what recording a small tensor costs. A test compares the two.
"""

from struct import Struct

import numpy as np

from weightledger.ledger.codecs import loops
from weightledger.ledger.codecs.delta import NEARLY_ALL
from weightledger.ledger.codecs.streams import SHORTEST_PACKED
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.tensors.spec import Lanes

_DENSE = b"\x07dense.1"
_COUNT_AND_SIZE = Struct("<II")


def encode_few(before: Lanes, after: Lanes, ordered: bool) -> tuple[bytes, int] | None:
    """The frame that leads from `before` to `after`, and how many lanes it changes.

    None where there are no lanes, or so many that their planes may be packed, or where other
    codecs may write less. What was written is read again and has to lead there; CorruptLedger if
    it does not.
    """
    count = len(before)
    if not 0 < count < SHORTEST_PACKED:
        return None
    room = np.empty(1 + before.itemsize * (4 + count), np.uint8)
    changed = loops.few_planes(before, after, ordered, room)
    if changed <= NEARLY_ALL * count:
        return None
    size = 1 + int(room[0]) * (4 + count)
    frame = b"".join((_DENSE, _COUNT_AND_SIZE.pack(count, size), room[:size].data))
    written = np.frombuffer(frame, np.uint8, offset=len(_DENSE) + 8)
    if not loops.few_lead(written, before, after, ordered):
        raise CorruptLedger("codec 'dense.1' did not reproduce the difference it was given")
    return frame, changed
