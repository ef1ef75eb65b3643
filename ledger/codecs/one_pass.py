"""A tile compared, checked by chunks and encoded in one compiled pass.

It goes without Python's lock, but for few lanes: each call that gives the lock back and asks for
it again may have to wait for the other thread, and to be woken up. What this needs from libraries'
own functions is not in every build of them: without it tiles are compared by `delta`, encoded by
`frames` and checked chunk by chunk.
"""

import ctypes
from collections import deque
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.codecs import packing, several
from weightledger.ledger.codecs.delta import NEARLY_ALL, TILE_LANES, Delta, Indices
from weightledger.ledger.codecs.frames import framed
from weightledger.ledger.tensors.digest import CHECKSUM_BYTES, CHUNK_BYTES
from weightledger.ledger.tensors.spec import Lanes

# The first takes whatever vectors the processor has; it is there on x86 only.
_CHECKSUMS = ("XXH3_128bits_dispatch", "XXH3_128bits")
# How much room is kept: as many threads as record at once.
_KEPT = 2
# Up to so many lanes are done with before another thread would have taken over Python's lock, which
# who lets go of it waits for.
_FEW = 1 << 12


@dataclass(frozen=True, slots=True)
class Looked:
    """What was seen of a tile.

    `changed` lanes differ, at `indices` (None where nearly all do); `touched` are the numbers of
    the chunks to hash anew, and `before` and `after` [chunks, 16] their checksums. `square` is the
    square distance if it was asked for. `frame` says the delta; where it has to be written by a
    codec after all, `delta` is there instead.
    """

    changed: int
    indices: Indices | None
    touched: NDArray[np.intp]
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    square: float
    frame: bytes
    delta: Delta | None


class _Room:
    """What a tile is worked on in, kept: fresh memory costs more than what is done with it. No
    more of it is touched than a tile takes."""

    def __init__(self) -> None:
        from weightledger.ledger.codecs.compiled_frames import GAPS_BYTES

        self.packer, self.reading = packing.Packer(), several.Room()
        self.packer.fit(GAPS_BYTES)  # no stream of a frame is longer
        self.positions = np.empty(TILE_LANES, np.int32)
        self.difference = np.empty(TILE_LANES, np.uint64)
        self.out = np.empty(9 * TILE_LANES, np.uint8)


_idle: deque[_Room] = deque(maxlen=_KEPT)


def look(
    before: Lanes,
    after: Lanes,
    ordered: bool,
    source: "Lanes | None" = None,
    *,
    encoding: bool = True,
    squared: bool = False,
) -> Looked | None:
    """Fill `after` from `source`, if there is one, compare it with `before`, and encode.

    All are contiguous. With `squared` they are float32 or bfloat16. None, and nothing is done,
    where it cannot be done here. Raises ValueError for lanes that do not go together.
    """
    checksum = _checksum()
    if checksum is None or not packing.within_reach() or not 0 < len(before) <= TILE_LANES:
        return None
    if any(
        other.shape != before.shape or other.dtype != before.dtype
        for other in ((after,) if source is None else (after, source))
    ):
        raise ValueError("lanes to compare have one length and dtype")
    from weightledger.ledger.codecs import compiled_pass

    try:
        mine = _idle.pop()
    except IndexError:
        mine = _Room()
    count = len(before)
    chunks = -(-before.nbytes // CHUNK_BYTES)
    sums = np.empty((2, chunks, CHECKSUM_BYTES), np.uint8)
    touched = np.empty(chunks, np.bool_)
    positions = mine.positions[:count]
    difference = mine.difference.view(before.dtype)[:count]
    recorded = compiled_pass.recorded_few if count <= _FEW else compiled_pass.recorded
    changed, size, dense, square = recorded(
        after[:0] if source is None else source,
        before,
        after,
        ordered,
        positions,
        difference,
        checksum,
        sums[0],
        sums[1],
        touched,
        encoding,
        squared,
        mine.reading.values.view(before.dtype),
        mine.reading.plane,
        mine.out,
        mine.packer.room,
        mine.packer.zstd,
        mine.reading.gaps,
        mine.reading.held,
        mine.reading.zstd,
    )
    every = changed > NEARLY_ALL * count
    indices = None if every else positions[:changed].copy()
    frame, delta = b"", None
    if size >= 0:
        codec = ("dense.1" if dense else "sparse.1") if changed else "none.1"
        frame = framed(codec, count, mine.out[:size].data)
    elif encoding:
        delta = Delta(count, indices, difference[: count if every else changed].copy())
    _idle.append(mine)
    return Looked(changed, indices, touched.nonzero()[0], sums[0], sums[1], square, frame, delta)


@cache
def _checksum() -> int | None:
    """The address of XXH3's function; None where this build of xxhash does not show it."""
    library = ctypes.CDLL(import_module("xxhash._xxhash").__file__)
    for name in _CHECKSUMS:
        if hasattr(library, name):
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    return None
