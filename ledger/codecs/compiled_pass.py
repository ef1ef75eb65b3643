"""A tile read once, without Python's lock: copied, compared, and checked by chunks.

What is done with a chunk while it is in the processor's cache: it is copied from where its new
values stand, lanes that differ are noted, and where some do, what it was and what it is are
checksummed, by xxhash's own function called by its address.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic
from numpy.typing import NDArray

from weightledger.ledger.codecs.compiled import (
    all_differences,
    differences,
    differing,
    fill,
    square_distance,
    square_distance_of_all,
)
from weightledger.ledger.codecs.compiled_encoding import encoded
from weightledger.ledger.codecs.delta import NEARLY_ALL
from weightledger.ledger.tensors.compiling import compiled, compiled_for_few
from weightledger.ledger.tensors.digest import CHUNK_BYTES
from weightledger.ledger.tensors.spec import Lanes

_HALVES: Any = numba.types.UniTuple(numba.uint64, 2)  # type: ignore[no-untyped-call]


def _call_checksum(_: Any, function: Any, address: Any, size: Any) -> Any:
    """The two halves, the lower first, that XXH3's function at an address gives in registers."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        pair = ir.LiteralStructType([word, word])
        kind = ir.FunctionType(pair, [word, word]).as_pointer()
        both = builder.call(builder.inttoptr(arguments[0], kind), arguments[1:])
        halves = [builder.extract_value(both, half) for half in range(2)]
        return context.make_tuple(builder, signature.return_type, halves)

    return _HALVES(numba.int64, numba.int64, numba.int64), code


_checksum: Any = intrinsic(_call_checksum)


@compiled
def checksum_to(function: Any, data: Lanes, out: NDArray[np.uint8]) -> None:
    """Write XXH3-128 of contiguous lanes to `out`, its higher half first, as xxhash does."""
    low, high = _checksum(function, np.int64(data.ctypes.data), np.int64(data.size * data.itemsize))
    for byte in range(8):
        shift = np.uint64(8 * (7 - byte))
        out[byte] = high >> shift
        out[8 + byte] = low >> shift


@compiled
def compared(
    source: Lanes,
    before: Lanes,
    after: Lanes,
    ordered: bool,
    positions: NDArray[np.int32],
    difference: Lanes,
    function: Any,
    sums_before: NDArray[np.uint8],
    sums_after: NDArray[np.uint8],
    touched: NDArray[np.bool_],
) -> int:
    """Compare a tile's lanes; `after` is filled from `source` where that has any.

    There is room for all lanes in `positions` and `difference`, and for each chunk in the rest
    (`sums_*` [chunks, 16]). Returns how many differ. Where nearly all do, `difference` has an entry
    for every lane and all chunks are checksummed; else one for each of the positions.
    """
    part = CHUNK_BYTES // before.itemsize
    found = 0
    for chunk in range(touched.size):
        start, stop = chunk * part, min((chunk + 1) * part, before.size)
        if source.size:
            fill(after[start:stop], source[start:stop])
        old, new = before[start:stop], after[start:stop]
        where = positions[found : found + stop - start]
        changed = differing(old, new, where)
        for entry in range(changed):
            where[entry] += np.int32(start)
        found += changed
        touched[chunk] = changed != 0
        if changed:
            checksum_to(function, old, sums_before[chunk])
            checksum_to(function, new, sums_after[chunk])
    if found > NEARLY_ALL * before.size:
        all_differences(before, after, ordered, difference)
        for chunk in range(touched.size):
            if not touched[chunk]:
                start, stop = chunk * part, min((chunk + 1) * part, before.size)
                checksum_to(function, before[start:stop], sums_before[chunk])
                checksum_to(function, after[start:stop], sums_after[chunk])
                touched[chunk] = True
    else:
        differences(before, after, positions[:found], ordered, difference)
    return found


@compiled
def recorded(
    source: Lanes,
    before: Lanes,
    after: Lanes,
    ordered: bool,
    positions: NDArray[np.int32],
    difference: Lanes,
    function: Any,
    sums_before: NDArray[np.uint8],
    sums_after: NDArray[np.uint8],
    touched: NDArray[np.bool_],
    encoding: bool,
    squared: bool,
    folded: Lanes,
    plane: NDArray[np.uint8],
    out: NDArray[np.uint8],
    packed: NDArray[np.uint8],
    packing: NDArray[np.int64],
    gaps: NDArray[np.uint8],
    held: NDArray[np.int64],
    unpacking: NDArray[np.int64],
) -> Any:
    """`compared`, then `encoded` and the square of the distance where they are wanted.

    Returns how many lanes differ, the size of what was encoded, -1 without, whether that is dense,
    and the square.
    """
    found = compared(
        source,
        before,
        after,
        ordered,
        positions,
        difference,
        function,
        sums_before,
        sums_after,
        touched,
    )
    every = found > NEARLY_ALL * before.size
    where = positions[: 0 if every else found]
    square = 0.0
    if squared:
        square = (
            square_distance_of_all(before, after)
            if every
            else square_distance(before, after, where)
        )
    size: Any = np.int64(-1)
    dense = every
    if encoding:
        size, dense = encoded(
            before.size,
            where,
            difference[: before.size if every else found],
            folded,
            plane,
            out,
            packed,
            packing,
            gaps,
            held,
            unpacking,
        )
    return found, size, dense, square


@compiled_for_few
def recorded_few(
    source: Lanes,
    before: Lanes,
    after: Lanes,
    ordered: bool,
    positions: NDArray[np.int32],
    difference: Lanes,
    function: Any,
    sums_before: NDArray[np.uint8],
    sums_after: NDArray[np.uint8],
    touched: NDArray[np.bool_],
    encoding: bool,
    squared: bool,
    folded: Lanes,
    plane: NDArray[np.uint8],
    out: NDArray[np.uint8],
    packed: NDArray[np.uint8],
    packing: NDArray[np.int64],
    gaps: NDArray[np.uint8],
    held: NDArray[np.int64],
    unpacking: NDArray[np.int64],
) -> Any:
    """`recorded`, which keeps Python's lock."""
    return recorded(
        source,
        before,
        after,
        ordered,
        positions,
        difference,
        function,
        sums_before,
        sums_after,
        touched,
        encoding,
        squared,
        folded,
        plane,
        out,
        packed,
        packing,
        gaps,
        held,
        unpacking,
    )
