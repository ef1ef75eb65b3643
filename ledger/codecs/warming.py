"""Compiling ahead what the first change of a tensor would wait for."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from weightledger.ledger.codecs import loops
from weightledger.ledger.codecs.delta import apply, apply_several, at
from weightledger.ledger.codecs.few import encode_few
from weightledger.ledger.codecs.frames import apply_frames, encode_frame, encode_tensor
from weightledger.ledger.codecs.one_pass import look
from weightledger.ledger.codecs.several import take_through

_LANES = 8192  # more than what is done with Python's lock


def warm(dtypes: Iterable[np.dtype[np.unsignedinteger[Any]]]) -> None:
    """Compile or load every loop for lanes of these dtypes, by moving a few lanes in every way.

    Takes seconds where no process of this installation has done so before, else some tenths.
    """
    for dtype in set(dtypes):
        before, after = np.zeros(_LANES, dtype), np.zeros(_LANES, dtype)
        written = np.arange(0, _LANES, 9)
        after[written] = 5
        sparse = at(written, before, after, True)
        apply(before, sparse, True)
        apply_several(before, [(sparse, True), (sparse, False)], True)
        apply_frames(before, encode_frame(sparse), True, undo=True)
        take_through(before, [(memoryview(encode_frame(sparse)), True)], True)
        loops.same(before, after)
        look(before, after.copy(), True, after)
        look(before[:64], after[:64], True)
        if dtype.itemsize in (2, 4):
            loops.square_distance(before, after, written.astype(np.int32))
            loops.square_distance_of_all(before, after)
        apply_frames(before, encode_tensor(before, after, True), True)
        apply_frames(before, encode_tensor(before, before + dtype.type(1), True), True)
        encode_few(before[:64], before[:64] + dtype.type(1), True)


def warm_few() -> None:
    """Compile or load what a small update, and following one, is made of: float32, nearly all of
    it changed. Whoever has a turn meanwhile is waited for by every other writer."""
    before = np.zeros(64, np.uint32)
    written = encode_few(before, before + np.uint32(1), True)
    assert written is not None
    apply_frames(before, written[0], True)
    take_through(before, [(memoryview(written[0]), True)], True)
