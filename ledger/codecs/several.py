"""Encoded deltas read by one compiled call, as far as they are as usual.

The way that states are rebuilt by, where most deltas are read, and that what is recorded is read
again by. It needs zstd's own functions, which the package gives through cffi; without them, and for
what another codec wrote or is damaged, codecs read one frame after another.
"""

import threading
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.codecs.delta import TILE_LANES, Delta
from weightledger.ledger.tensors.spec import Lanes

try:
    _zstd: Any = import_module("zstandard._cffi")
except ImportError:  # a build without cffi
    _zstd = None

_FEW_BYTES = 64 * 1024

_FUNCTIONS = ("ZSTD_decompressDCtx", "ZSTD_getFrameContentSize", "ZSTD_findFrameCompressedSize")


class Room:
    """What encoded deltas are read in, kept: fresh memory costs more than what is done with it.

    Only with zstd's own functions, and for one thread at a time. `zstd` is as in
    `compiled_steps.take_through`.
    """

    def __init__(self) -> None:
        from weightledger.ledger.codecs.compiled_frames import COLUMNS, GAPS_BYTES

        self._context = _zstd.ffi.gc(_zstd.lib.ZSTD_createDCtx(), _zstd.lib.ZSTD_freeDCtx)
        functions = (_zstd.ffi.addressof(_zstd.lib, name) for name in _FUNCTIONS)
        self.zstd = np.array(
            [int(_zstd.ffi.cast("intptr_t", one)) for one in (self._context, *functions)], np.int64
        )
        self.values = np.empty(TILE_LANES, np.uint64)
        self.plane = np.empty(TILE_LANES, np.uint8)
        self.gaps = np.empty(GAPS_BYTES, np.uint8)
        self.held = np.empty(COLUMNS, np.int64)


class _Mine(threading.local):
    def __init__(self) -> None:
        self.room = Room()


@cache
def _mine() -> _Mine:
    return _Mine()


def says(codec_id: str, data: bytes, delta: Delta) -> bool:
    """Whether a codec's bytes are plainly of this delta; where not, `Codec.decode` tells."""
    if _zstd is None:
        return False
    from weightledger.ledger.codecs import compiled_check

    mine = _mine().room
    positions = np.empty(0, np.int32) if delta.indices is None else delta.indices
    return bool(
        compiled_check.says(
            np.frombuffer(codec_id.encode("ascii"), np.uint8),
            np.frombuffer(data, np.uint8),
            delta.count,
            positions,
            delta.difference,
            mine.values.view(delta.difference.dtype),
            mine.plane,
            mine.gaps,
            mine.held,
            mine.zstd,
        )
    )


def take_through(
    lanes: Lanes, deltas: Sequence[tuple[memoryview, bool]], ordered: bool
) -> tuple[int, int]:
    """Apply the frames of several deltas to a whole tensor's lanes in place.

    Each delta is its bytes and whether it is undone. Gives the lane up to which all are applied,
    where a frame of all of them begins, and how many are applied to that frame's lanes; beyond that
    nothing was written. What is left there is for `frames`, which also tells what is wrong with it.
    """
    if _zstd is None or not deltas:
        return 0, 0
    from weightledger.ledger.codecs import compiled_frames, compiled_steps

    mine = _mine().room
    sizes = [len(data) for data, _ in deltas]
    if 0 in sizes:
        return 0, 0
    if sum(sizes) <= _FEW_BYTES:  # asking each where it is takes longer than copying them
        encoded = [np.frombuffer(b"".join([data for data, _ in deltas]), np.uint8)]
        addresses = [*accumulate(sizes[:-1], initial=_address(encoded[0]))]
    else:
        encoded = [np.frombuffer(data, np.uint8) for data, _ in deltas]
        addresses = [*map(_address, encoded)]
    reached = np.zeros(2, np.int64)
    compiled_steps.take_through(
        lanes,
        np.array(addresses, np.int64),
        np.array(sizes, np.int64),
        np.array([undo for _, undo in deltas]),
        ordered,
        mine.values.view(lanes.dtype),
        mine.plane,
        mine.gaps,
        np.empty((len(deltas), compiled_frames.COLUMNS), np.int64),
        mine.zstd,
        reached,
    )
    return int(reached[0]), int(reached[1])


def _address(data: NDArray[np.uint8]) -> int:
    where: int = data.__array_interface__["data"][0]
    return where
