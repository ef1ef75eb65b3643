"""Codecs: how the difference between two states of a tensor becomes bytes, and back.

The contract
------------
- A codec has a permanent `id` ("sparse.1"). Bytes written under an id are decoded to the same
  delta for ever; a change that would read old bytes differently is a new id.
- `decode(encode(delta), delta.count, delta.difference.dtype)` does to any lanes exactly what
  `delta` does, for every lane dtype and every bit pattern. There is no lossy codec.
- `decode` trusts nothing. Whatever the bytes, it raises CorruptLedger or returns a delta of
  `count` lanes whose indices ascend within [0, count), whose differences have the asked dtype,
  and allocates no more than a small multiple of `count` lanes.
- Codecs hold no state and are used from several threads at once.
- A codec sees one frame of at most `frames.TILE_LANES` lanes; `frames` cuts tensors into frames
  and chooses the codec of each.

Adding one is a file with such a class and a row in `registry`; the conformance suite and
the frozen bytes run over the table. Other packages add theirs through the entry-point group
`weightledger.codecs`: an entry's name is the codec's id, its object a codec instance.
"""

from weightledger.ledger.codecs.delta import (
    Delta,
    apply,
    at,
    changed_lanes,
    compare,
    equal,
    every_lane,
)
from weightledger.ledger.codecs.frames import (
    TILE_LANES,
    apply_frames,
    encode_frame,
    encode_tensor,
    tiles,
    written_chunks,
)
from weightledger.ledger.codecs.registry import CODECS, Codec, get_codec

__all__ = [
    "CODECS",
    "TILE_LANES",
    "Codec",
    "Delta",
    "apply",
    "apply_frames",
    "at",
    "changed_lanes",
    "compare",
    "encode_frame",
    "encode_tensor",
    "equal",
    "every_lane",
    "get_codec",
    "tiles",
    "written_chunks",
]
