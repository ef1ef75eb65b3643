"""Loops over lanes, compiled when they are first used, that run without Python's lock.

A frame takes a dozen short passes over its lanes. As separate numpy calls these pass the lock back
and forth between threads for longer than they work. Only integers are moved here, each element by
itself, so the results are the same on every machine.

Arrays are flat and as long as each loop says: nothing here checks bounds, so callers do. `ordered`
is as in `delta`: lanes are taken in the order of the numbers rather than of the bits.

Operands of one unsigned type only: numba, as numpy, makes a float of a signed and a uint64.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic
from numpy.typing import NDArray

from weightledger.ledger.tensors.compiling import compiled, compiled_for_few
from weightledger.ledger.tensors.spec import Lanes

# How many lanes are compared in one go, and the bits that say that all of them differ.
_AT_ONCE, _EVERY = 64, np.uint64(2**64 - 1)
# Lanes after which it is asked whether one of them differed.
_BLOCK = 4096
# Lanes that several deltas are added to, one after another: half of a small cache; and its lines.
_PART_BYTES, _LINE_BYTES = 1 << 18, 64


def _where_other(_: Any, one: Any, other: Any, start: Any) -> Any:
    """Which of the 64 lanes from `start` on differ, the first of them in the lowest bit."""
    width = one.dtype.bitwidth

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, loaded = ir.VectorType(ir.IntType(width), _AT_ONCE), []
        for kind, array in zip(signature.args[:2], arguments[:2], strict=True):
            first = context.make_array(kind)(context, builder, array).data
            at = builder.bitcast(builder.gep(first, [arguments[2]]), vector.as_pointer())
            loaded.append(builder.load(at, align=width // 8))
        return builder.bitcast(builder.icmp_unsigned("!=", *loaded), ir.IntType(_AT_ONCE))

    return numba.uint64(one, other, numba.int64), code


def _lowest_bit(_: Any, bits: Any) -> Any:
    """The number of the lowest bit that is set; one is."""

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return numba.uint64(numba.uint64), code


_differing_lanes: Any = intrinsic(_where_other)
_lowest: Any = intrinsic(_lowest_bit)


@compiled
def differing(before: Lanes, after: Lanes, positions: NDArray[np.int32]) -> int:
    """Write the positions of lanes that differ; `positions` has room for all. Returns how many.

    Both are contiguous. 64 lanes are compared at once, by whatever vectors the processor has.
    """
    found = 0
    whole = before.size - before.size % _AT_ONCE
    for start in range(0, whole, _AT_ONCE):
        bits = _differing_lanes(before, after, start)
        if bits == _EVERY:
            for lane in range(_AT_ONCE):
                positions[found + lane] = start + lane
            found += _AT_ONCE
        else:
            while bits:
                positions[found] = start + np.int64(_lowest(bits))
                found += 1
                bits &= bits - np.uint64(1)
    for lane in range(whole, before.size):
        if before[lane] != after[lane]:
            positions[found] = lane
            found += 1
    return found


@compiled
def same(one: Lanes, other: Lanes) -> bool:
    """Whether all lanes are equal; stops soon after the first that is not."""
    for start in range(0, one.size, _BLOCK):
        left, right = one[start : start + _BLOCK], other[start : start + _BLOCK]
        some = one.dtype.type(0)
        for lane in range(left.size):
            some |= left[lane] ^ right[lane]
        if some:
            return False
    return True


@compiled
def fill(out: NDArray[Any], values: NDArray[Any]) -> None:
    """Copy `values` to an array as long. Assigned to a slice, elements are copied one by one."""
    for at in range(values.size):
        out[at] = values[at]


@compiled
def in_order(bits: Any, top: Any) -> Any:
    """Sign bit (number `top`) set: all bits inverted. Clear: the sign bit set."""
    lane = type(bits)
    return lane(bits ^ ((lane(0) - (bits >> top)) | (lane(1) << top)))


@compiled
def in_bits(integer: Any, top: Any) -> Any:
    """The reverse of `in_order`."""
    lane = type(integer)
    return lane(integer ^ ((lane(0) - ((integer >> top) ^ lane(1))) | (lane(1) << top)))


@compiled
def _difference(old: Any, new: Any, top: Any, ordered: bool) -> Any:
    if ordered:
        old, new = in_order(old, top), in_order(new, top)
    return type(old)(new - old)


@compiled
def moved(value: Any, step: Any, top: Any, ordered: bool, undo: bool) -> Any:
    lane = type(value)
    if undo:
        step = lane(lane(0) - step)
    if ordered:
        return in_bits(lane(in_order(value, top) + step), top)
    return lane(value + step)


@compiled
def differences(
    before: Lanes, after: Lanes, positions: NDArray[Any], ordered: bool, out: Lanes
) -> int:
    """Write after - before at each position to `out`. Returns how many of them are not zero."""
    top = before.dtype.type(before.itemsize * 8 - 1)
    changed = 0
    for entry in range(positions.size):
        at = np.uint32(positions[entry])
        out[entry] = _difference(before[at], after[at], top, ordered)
        changed += before[at] != after[at]
    return changed


@compiled
def all_differences(before: Lanes, after: Lanes, ordered: bool, out: Lanes) -> None:
    """Write after - before of every lane to `out`."""
    top = before.dtype.type(before.itemsize * 8 - 1)
    for lane in range(before.size):
        out[lane] = _difference(before[lane], after[lane], top, ordered)


@compiled
def move(
    lanes: Lanes, positions: NDArray[np.int32], difference: Lanes, ordered: bool, undo: bool
) -> None:
    """Add the differences to the lanes at the positions, or with `undo` take them off."""
    top = lanes.dtype.type(lanes.itemsize * 8 - 1)
    for entry in range(positions.size):
        at = np.uint32(positions[entry])
        lanes[at] = moved(lanes[at], difference[entry], top, ordered, undo)


@compiled
def move_several(
    lanes: Lanes,
    positions: NDArray[np.uint32],
    difference: Lanes,
    ends: NDArray[np.int64],
    ordered: bool,
) -> Any:
    """Add the differences of several deltas, one after another in `positions` and `difference`,
    each up to its entry of `ends` and its positions ascending.

    Part of the lanes after part, so that they stay in the processor's cache for all deltas. Where
    most lines of the cache are written to, they are fetched first, one after another: positions
    come too irregularly for the processor to fetch ahead, and each would wait for memory. What was
    fetched is returned, or'ed together, for no use but that the compiler lets it be fetched.
    """
    lane = lanes.dtype.type
    top = lane(lanes.itemsize * 8 - 1)
    part, line = _PART_BYTES // lanes.itemsize, _LINE_BYTES // lanes.itemsize
    many = positions.size * 4 * line > lanes.size
    done = np.zeros_like(ends)
    done[1:] = ends[:-1]
    some = lane(0)
    for start in range(0, lanes.size, part):
        stop = min(start + part, lanes.size)
        if many:
            for at in range(start, stop, line):
                some |= lanes[at]
        for delta in range(ends.size):
            first = low = done[delta]
            high = ends[delta]
            while low < high:
                middle = (low + high) // 2
                if positions[middle] < stop:
                    low = middle + 1
                else:
                    high = middle
            done[delta] = low
            for entry in range(first, low):
                at = positions[entry]
                lanes[at] = moved(lanes[at], difference[entry], top, ordered, False)
    return some


@compiled
def move_all(lanes: Lanes, difference: Lanes, ordered: bool, undo: bool) -> None:
    """Add a difference to every lane, or with `undo` take it off."""
    top = lanes.dtype.type(lanes.itemsize * 8 - 1)
    for lane in range(lanes.size):
        lanes[lane] = moved(lanes[lane], difference[lane], top, ordered, undo)


@compiled
def outside(positions: NDArray[Any], count: int) -> bool:
    """Whether a position is not one of `count` lanes."""
    low = high = 0
    for entry in range(positions.size):
        low = min(low, positions[entry])
        high = max(high, positions[entry] + 1)
    return low < 0 or high > count


@compiled
def fold(difference: Lanes, out: Lanes) -> Any:
    """Write 0, -1, 1, -2, 2 … as 0, 1, 2, 3, 4 …. Returns all of them or'ed together."""
    lane = difference.dtype.type
    top = lane(difference.itemsize * 8 - 1)
    some = lane(0)
    for entry in range(difference.size):
        value = difference[entry]
        folded = lane((value << lane(1)) ^ (lane(0) - (value >> top)))
        out[entry] = folded
        some |= folded
    return some


@compiled
def to_planes(values: Lanes, planes: NDArray[np.uint8]) -> None:
    """Write the bytes of each value to `planes` [planes, values], the lowest first."""
    for plane in range(planes.shape[0]):
        shift = values.dtype.type(8 * plane)
        out = planes[plane]
        for entry in range(values.size):
            out[entry] = values[entry] >> shift


@compiled
def from_planes(planes: NDArray[np.uint8], signed: bool, out: Lanes) -> None:
    """The reverse of `to_planes` and, if `signed`, of `fold`."""
    lane = out.dtype.type
    out[:] = planes[0]
    for plane in range(1, planes.shape[0]):
        shift = lane(8 * plane)
        data = planes[plane]
        for entry in range(out.size):
            out[entry] |= lane(data[entry]) << shift
    if signed:
        for entry in range(out.size):
            value = out[entry]
            out[entry] = (value >> lane(1)) ^ (lane(0) - (value & lane(1)))


@compiled_for_few
def few_planes(before: Lanes, after: Lanes, ordered: bool, out: NDArray[np.uint8]) -> int:
    """Write what `planes.encode_signed` writes of the differences of fewer lanes than are packed.

    `out` has room for every plane. Returns how many lanes differ.
    """
    lane = before.dtype.type
    top, one = lane(before.itemsize * 8 - 1), lane(1)
    count = before.size
    some = lane(0)
    changed = 0
    for entry in range(count):
        step = _difference(before[entry], after[entry], top, ordered)
        folded = lane((step << one) ^ (lane(0) - (step >> top)))
        some |= folded
        changed += folded != lane(0)
        for plane in range(before.itemsize):
            out[1 + 4 * (plane + 1) + plane * count + entry] = folded >> lane(8 * plane)
    planes = 0
    while planes < before.itemsize and some >> lane(8 * planes):
        at = 1 + planes * (4 + count)
        for byte in range(4):
            out[at + byte] = count >> (8 * byte)
        planes += 1
    out[0] = planes
    return changed


@compiled_for_few
def few_lead(encoded: NDArray[np.uint8], before: Lanes, after: Lanes, ordered: bool) -> bool:
    """Whether bytes as `few_planes` writes them, read as what they say, lead from all of the lanes
    to all of the others."""
    lane = before.dtype.type
    top, one = lane(before.itemsize * 8 - 1), lane(1)
    count = before.size
    planes = encoded[0]
    if planes > before.itemsize or encoded.size != 1 + planes * (4 + count):
        return False
    for plane in range(planes):
        for byte in range(4):
            if encoded[1 + plane * (4 + count) + byte] != (count >> (8 * byte)) & 255:
                return False
    for entry in range(count):
        folded = lane(0)
        for plane in range(planes):
            folded |= lane(encoded[1 + 4 * (plane + 1) + plane * count + entry]) << lane(8 * plane)
        step = lane((folded >> one) ^ (lane(0) - (folded & one)))
        if moved(before[entry], step, top, ordered, False) != after[entry]:
            return False
    return True


def _same_bits_as_float32(_: Any, bits: Any) -> Any:
    """Of 32 bits the float32 that has them."""

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return numba.float32(numba.uint32), code


_as_float32: Any = intrinsic(_same_bits_as_float32)


@compiled
def _step(old: Any, new: Any, top_half: bool) -> Any:
    """new - old, both bits of a float32 or, with `top_half`, the upper half of them."""
    shift = np.uint32(16 if top_half else 0)
    one, other = np.uint32(old) << shift, np.uint32(new) << shift
    return np.float64(_as_float32(np.uint32(other)) - _as_float32(np.uint32(one)))


@compiled
def square_distance(before: Lanes, after: Lanes, positions: NDArray[np.int32]) -> float:
    """The sum of the squares of after - before at the positions, of float32 or bfloat16.

    Each difference is rounded to float32; their squares are added up in float64, in an order that
    is the same on every machine.
    """
    half = before.itemsize == 2
    sums = np.zeros(4)
    for entry in range(positions.size):
        at = np.uint32(positions[entry])
        step = _step(before[at], after[at], half)
        sums[entry & 3] += step * step
    total: float = sums[0] + sums[1] + (sums[2] + sums[3])
    return total


@compiled
def square_distance_of_all(before: Lanes, after: Lanes) -> float:
    """`square_distance` of every lane."""
    half = before.itemsize == 2
    one = two = three = four = 0.0
    whole = before.size - before.size % 4
    for lane in range(0, whole, 4):
        step = _step(before[lane], after[lane], half)
        one += step * step
        step = _step(before[lane + 1], after[lane + 1], half)
        two += step * step
        step = _step(before[lane + 2], after[lane + 2], half)
        three += step * step
        step = _step(before[lane + 3], after[lane + 3], half)
        four += step * step
    for lane in range(whole, before.size):
        step = _step(before[lane], after[lane], half)
        one += step * step
    return one + two + (three + four)


@compiled
def to_runs(positions: NDArray[np.int32], out: NDArray[np.uint8]) -> int:
    """Write the gaps between positions as runs: one each and one for each whole 255 lanes. Returns
    how many, or one more than there is room for."""
    size = 0
    for entry in range(1, positions.size):
        gap = positions[entry] - positions[entry - 1] - 1
        while gap >= 255 and size < out.size:
            out[size] = 255
            size += 1
            gap -= 255
        if size == out.size:
            return size + 1
        out[size] = gap
        size += 1
    return size


@compiled
def from_runs(runs: NDArray[np.uint8], positions: NDArray[np.int32]) -> int:
    """Write the positions after the first, which is there. Returns how many the runs have, or one
    more than there is room for."""
    found = 1
    at = positions[0]
    for entry in range(runs.size):
        if found == positions.size:
            return found + 1
        # Without a branch: which gaps are long is not to be predicted.
        ends = runs[entry] != 255
        at += runs[entry] + ends
        positions[found] = at
        found += ends
    return found
