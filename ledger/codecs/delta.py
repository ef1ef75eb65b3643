"""The difference of two bit patterns: exact, reversible, and small where the numbers moved little.

A `Delta` says which lanes of a frame changed and by how much. The difference is taken modulo
2^N between the lanes as unsigned integers; floats are first mapped so that integer order is
numeric order, which makes a small step a small integer on both sides of zero. Every bit pattern
has its own integer, so NaN payloads, -0.0, infinities and denormals need no special case.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.codecs import loops
from weightledger.ledger.tensors.spec import Lanes

Indices: TypeAlias = NDArray[np.int32]

TILE_LANES = 1 << 20
"""Most lanes in a frame."""

# From this share of changed lanes on, positions cost more than the zeros they would save.
NEARLY_ALL = 0.9


@dataclass(frozen=True, slots=True)
class Delta:
    """What changed in one frame of `count` lanes.

    `indices` are the ascending positions of the changed lanes within the frame, or None if
    `difference` has one entry for every lane. `difference` is after - before modulo 2^N in the
    (ordered) integer domain, of the lanes' own unsigned dtype.
    """

    count: int
    indices: Indices | None
    difference: Lanes

    @property
    def changed(self) -> int:
        """Number of lanes that have an entry."""
        return len(self.difference)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        return self.difference.nbytes + (0 if self.indices is None else self.indices.nbytes)


def compare(before: Lanes, after: Lanes, ordered: bool) -> Delta:
    """The delta between two frames of equal length, found by comparing every lane.

    `ordered` is true for float dtypes (`ElementType.ordered`) and must be the same in `apply`.
    """
    _check_pair(before, after)
    before, after = np.ascontiguousarray(before), np.ascontiguousarray(after)
    count = len(before)
    positions = np.empty(count, np.int32)
    changed = loops.differing(before, after, positions)
    if changed > NEARLY_ALL * count:
        difference = np.empty_like(before)
        loops.all_differences(before, after, ordered, difference)
        return Delta(count, None, difference)
    indices = positions[:changed].copy()
    difference = np.empty(changed, before.dtype)
    loops.differences(before, after, indices, ordered, difference)
    return Delta(count, indices, difference)


def at(indices: NDArray[Any], before: Lanes, after: Lanes, ordered: bool) -> Delta:
    """The delta between two frames of equal length that differ at `indices` only.

    `indices` are ascending and unique. Lanes there whose bits did not change are dropped. Raises
    ValueError for an index outside the frame.
    """
    _check_pair(before, after)
    count = len(before)
    if len(indices) == count:
        return compare(before, after, ordered)
    _check_inside(indices, count)
    positions = indices.astype(np.int32, copy=False)
    difference = np.empty(len(indices), before.dtype)
    if loops.differences(before, after, positions, ordered, difference) < len(indices):
        kept = difference != 0
        positions, difference = positions[kept], difference[kept]
    return Delta(count, positions, difference)


def from_values(indices: Indices, before: Lanes, after: Lanes, count: int, ordered: bool) -> Delta:
    """The delta of a frame of `count` lanes whose lanes at `indices` go from `before` to `after`.

    `indices` are ascending and unique, and every one of these lanes changes.
    """
    _check_pair(before, after)
    difference = np.empty(len(before), before.dtype)
    loops.all_differences(before, after, ordered, difference)
    return Delta(count, indices, difference)


def apply(lanes: Lanes, delta: Delta, ordered: bool, *, undo: bool = False) -> None:
    """Write the delta into `lanes` in place: before becomes after, or with `undo` the reverse.

    Raises ValueError, and writes nothing, if the frame has another length or lane dtype than the
    delta or an index lies outside of it.
    """
    _check_fits(delta, lanes)
    if delta.indices is None:
        loops.move_all(lanes, delta.difference, ordered, undo)
    else:
        _check_inside(delta.indices, delta.count)
        loops.move(lanes, delta.indices, delta.difference, ordered, undo)


def apply_several(lanes: Lanes, deltas: Sequence[tuple[Delta, bool]], ordered: bool) -> None:
    """`apply` several deltas in place, each forward or, where its flag says so, backward.

    Differences are added modulo 2^N, so their order is the same to what comes of them. Raises
    ValueError as `apply` does; what was written by then stays.
    """
    some: list[tuple[Indices, Lanes, bool]] = []
    for delta, undo in deltas:
        _check_fits(delta, lanes)
        if delta.indices is None:
            loops.move_all(lanes, delta.difference, ordered, undo)
        elif delta.changed:
            _check_inside(delta.indices, delta.count)
            some.append((delta.indices, delta.difference, undo))
    if len(some) == 1:
        loops.move(lanes, *some[0][:2], ordered, some[0][2])
    elif some:
        positions = np.concatenate([indices for indices, _, _ in some]).view(np.uint32)
        difference = np.empty(len(positions), lanes.dtype)
        ends = np.cumsum([len(step) for _, step, _ in some], dtype=np.int64)
        for (_, step, undo), end in zip(some, ends, strict=True):
            (np.negative if undo else np.positive)(step, out=difference[end - len(step) : end])
        loops.move_several(lanes, positions, difference, ends, ordered)


def _check_fits(delta: Delta, lanes: Lanes) -> None:
    entries = delta.count if delta.indices is None else len(delta.indices)
    if (len(lanes), lanes.dtype, entries) != (delta.count, delta.difference.dtype, delta.changed):
        raise ValueError(
            f"the delta is of {delta.changed} differences at {entries} of {delta.count} lanes of "
            f"{delta.difference.dtype}, got {len(lanes)} of {lanes.dtype}"
        )


def equal(one: Delta, other: Delta) -> bool:
    """Whether two deltas do the same to every frame, however they list the lanes."""
    if one.count != other.count or one.difference.dtype != other.difference.dtype:
        return False
    if one.indices is None or other.indices is None:
        return np.array_equal(every_lane(one).difference, every_lane(other).difference)
    return np.array_equal(one.indices, other.indices) and np.array_equal(
        one.difference, other.difference
    )


def every_lane(delta: Delta) -> Delta:
    """The same delta with one entry for every lane, zero where nothing changed."""
    if delta.indices is None:
        return delta
    difference = np.zeros(delta.count, delta.difference.dtype)
    difference[delta.indices] = delta.difference
    return Delta(delta.count, None, difference)


def changed_lanes(delta: Delta) -> Delta:
    """The same delta with entries for changed lanes only."""
    if delta.indices is not None:
        return delta
    indices = np.flatnonzero(delta.difference).astype(np.int32)
    return Delta(delta.count, indices, delta.difference[indices])


def window(delta: Delta, start: int, stop: int) -> Delta:
    """The part of `delta` for lanes `start` to `stop` of its frame."""
    if delta.indices is None:
        return Delta(stop - start, None, delta.difference[start:stop])
    low, high = np.searchsorted(delta.indices, np.array([start, stop], np.int32))
    return Delta(stop - start, delta.indices[low:high] - start, delta.difference[low:high])


def _check_inside(indices: NDArray[Any], count: int) -> None:
    if loops.outside(indices, count):
        raise ValueError(f"an index lies outside the frame of {count} lanes")


def _check_pair(before: Lanes, after: Lanes) -> None:
    if before.shape != after.shape or before.dtype != after.dtype:
        raise ValueError(
            f"before has {before.shape} lanes of {before.dtype}, after {after.shape} of "
            f"{after.dtype}"
        )
