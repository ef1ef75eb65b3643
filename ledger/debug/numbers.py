"""How two tensors differ, in float64, with an answer for every dtype and every value.

A changed element is one whose bits differ. Numbers are about the elements that are finite on both
sides, and how many are not stands beside them: two infinities have no difference. Every value is
worked out in float64 from the stored bits: bfloat16, float16 and float8 widen without rounding,
booleans count as 0 and 1, a complex number has its modulus. 64-bit integers are subtracted exactly
and then rounded once. Values so large or so small that their squares leave float64 are scaled by a
power of two, which rounds nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.codecs import loops
from weightledger.ledger.tensors.spec import Lanes, TensorSpec

Floats = NDArray[np.float64]

# Elements worked on at a time: they stay in the cache of a core, and are too few for BLAS to share
# out over threads, which on a busy machine costs ten times what it saves.
_CHUNK = 1 << 13
# Elements whose changed ones are listed together, and the share (one in so many) that is few.
_TILE = 1 << 17
_FEW = 8
# What is not finite is found by what it makes of a sum, and then counted.
_quiet = np.errstate(invalid="ignore", over="ignore", under="ignore")
_SAFE = 400  # exponents of two whose squares are far from the ends of float64


@dataclass(frozen=True, slots=True)
class Numbers:
    """How one tensor became another of the same dtype and shape.

    `first` is the flat index of the first changed element in C order, None where none changed.
    `largest` is the largest absolute change, `total` the sum of absolute changes; `change_norm`,
    `norm_before` and `norm_after` are L2 norms, `cosine` is that of the angle between before and
    after, None where one of them is 0. A number that float64 cannot hold is infinite. `lost` counts
    elements that were finite and are not any more, `not_finite` those that are not finite on one
    side or on both.
    """

    elements: int
    changed: int
    first: int | None
    largest: float
    total: float
    change_norm: float
    norm_before: float
    norm_after: float
    cosine: float | None
    lost: int
    not_finite: int

    @property
    def mean(self) -> float | None:
        """The mean absolute change of the elements that changed."""
        return self.total / self.changed if self.changed else None

    @property
    def relative(self) -> float | None:
        """The norm of the change over the norm before; None where that is 0."""
        return ratio(self.change_norm, self.norm_before)


def ratio(one: float, other: float) -> float | None:
    """A quotient of norms; None where it is not defined."""
    return one / other if other and math.isfinite(one) and math.isfinite(other) else None


@dataclass(slots=True)
class _Sums:
    """What a comparison has added up so far."""

    changed: int = 0
    lost: int = 0
    not_finite: int = 0
    first: int | None = None
    largest: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    before: float = 0.0
    after: float = 0.0
    products: float = 0.0

    def moved(self, size: Floats) -> None:
        """Add the absolute changes of some elements."""
        self.largest = max(self.largest, float(size.max(initial=0.0)))
        self.total += float(size.sum())
        self.squares += float(size @ size)


@_quiet
def compare(spec: TensorSpec, before: Lanes, after: Lanes) -> Numbers:
    """How the tensor with lanes `before` became the one with lanes `after`, both of this spec."""
    each = spec.element.lanes
    scales = _exponent(spec, before), _exponent(spec, after)
    sums = _Sums()
    for at, positions in _changed_elements(spec, before, after):
        old, new = (side[at * each : (at + _TILE) * each] for side in (before, after))
        sums.changed += len(positions)
        if len(positions) and sums.first is None:
            sums.first = at + int(positions[0])
        if not _add_few(sums, spec, old, new, positions, scales):
            _add_all(sums, spec, old, new, scales)
    norms = math.sqrt(sums.before), math.sqrt(sums.after)
    dot = sums.products / (norms[0] * norms[1]) if all(norms) else None
    largest, scale = sums.largest, max(scales)
    return Numbers(
        elements=spec.numel,
        changed=sums.changed,
        first=sums.first,
        largest=_scaled(largest, scale),
        total=_scaled(sums.total, scale),
        change_norm=_scaled(max(math.sqrt(sums.squares), largest), scale),  # squares may vanish
        norm_before=_scaled(norms[0], scales[0]),
        norm_after=_scaled(norms[1], scales[1]),
        cosine=None if dot is None else max(-1.0, min(1.0, dot)),
        lost=sums.lost,
        not_finite=sums.not_finite,
    )


def _changed_elements(
    spec: TensorSpec, before: Lanes, after: Lanes
) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Where bits differ, tile by tile: the flat index of a tile's first element, and the ascending
    places of changed elements in it. The places are good until the next tile."""
    each = spec.element.lanes
    room = np.empty(min(_TILE * each, spec.lane_count), np.int32)
    for at in range(0, spec.numel, _TILE):
        old, new = (side[at * each : (at + _TILE) * each] for side in (before, after))
        places = room[: loops.differing(old, new, room)]
        yield at, places if each == 1 else np.unique(places // np.int32(each))


def _add_few(
    sums: _Sums,
    spec: TensorSpec,
    old: Lanes,
    new: Lanes,
    positions: NDArray[np.int32],
    scales: tuple[int, int],
) -> bool:
    """Add a tile where few elements changed; False, and nothing is added, where that is not so.

    The norm after and the product follow from the norm before and the changed elements: only these
    are read twice. Not so where something is not finite, or most of the norm is gone, since little
    would be left of its digits.
    """
    each, exponent = spec.element.lanes, scales[0]
    if len(positions) * each * _FEW > len(old) or exponent != scales[1]:
        return False
    squares = 0.0
    for at in range(0, len(old), _CHUNK):
        values = _values(spec, old[at : at + _CHUNK], exponent)
        squares += float(values @ values)
    left, entered, product = squares, 0.0, 0.0
    size = None
    if len(positions):
        some = [side.reshape(-1, each)[positions].reshape(-1) for side in (old, new)]
        a, b = (_values(spec, side, exponent) for side in some)
        gone, entered, product = float(a @ a), float(b @ b), float(a @ b)
        if not 2 * gone <= squares:
            return False
        left -= gone
        size = _sizes(spec, some[0], some[1], a, b)
    if not math.isfinite(squares + entered):
        return False
    sums.before += squares
    sums.after += left + entered
    sums.products += left + product
    if size is not None:
        sums.moved(size)
    return True


def _add_all(
    sums: _Sums, spec: TensorSpec, before: Lanes, after: Lanes, scales: tuple[int, int]
) -> None:
    """Add a tile, looking at each element on both sides."""
    each, scale = spec.element.lanes, max(scales)
    for at in range(0, len(before), _CHUNK):
        old, new = (side[at : at + _CHUNK] for side in (before, after))
        a, b = _values(spec, old, scales[0]), _values(spec, new, scales[1])
        if not math.isfinite(float(a @ a) + float(b @ b)):
            was, is_ = np.isfinite(a), np.isfinite(b)
            out = _per_element(~(was & is_), each)
            sums.not_finite += int(np.count_nonzero(out))
            sums.lost += int(np.count_nonzero(_per_element(was & ~is_, each)))
            a, b = (np.where(np.repeat(out, each), 0.0, side) for side in (a, b))
        sums.before += float(a @ a)
        sums.after += float(b @ b)
        sums.products += float(a @ b)
        if scales[0] != scales[1]:
            a, b = np.ldexp(a, scales[0] - scale), np.ldexp(b, scales[1] - scale)
        sums.moved(_sizes(spec, old, new, a, b))


@_quiet
def norm(spec: TensorSpec, lanes: Lanes) -> float:
    """The L2 norm of a tensor's finite elements."""
    exponent = _exponent(spec, lanes)
    squares = 0.0
    for at in range(0, spec.lane_count, _CHUNK):
        values = _values(spec, lanes[at : at + _CHUNK], exponent)
        square = float(values @ values)
        if not math.isfinite(square):
            values = np.where(np.isfinite(values), values, 0.0)
            square = float(values @ values)
        squares += square
    return _scaled(math.sqrt(squares), exponent)


@_quiet
def values(spec: TensorSpec, lanes: Lanes) -> Floats:
    """The values as float64, shape (elements,), or (2 · elements,) for complex dtypes."""
    return _values(spec, lanes, 0)


def number(spec: TensorSpec, lanes: Lanes, index: int) -> Any:
    """One element, as a Python number: exact for integers; a complex one is [real, imaginary]."""
    each = spec.element.lanes
    lane = lanes[index * each : (index + 1) * each]
    kind = spec.element.kind
    if kind == "boolean":
        return bool(lane[0])
    if kind == "integer":
        return int(_integers(spec, lane)[0])
    parts = [float(part) for part in values(spec, lane)]
    return parts if each > 1 else parts[0]


def _sizes(spec: TensorSpec, old: Lanes, new: Lanes, a: Floats, b: Floats) -> Floats:
    """The absolute change of each element."""
    if spec.element.kind == "integer" and spec.element.itemsize == 8:
        less, more = _integers(spec, old), _integers(spec, new)
        one, other = old.view(np.uint64), new.view(np.uint64)
        return np.where(more >= less, other - one, one - other).astype(np.float64)
    change = b - a
    if spec.element.lanes > 1:
        return np.hypot(change[0::2], change[1::2])
    return np.abs(change)


def _per_element(flags: NDArray[np.bool_], each: int) -> NDArray[np.bool_]:
    if each == 1:
        return flags
    whole: NDArray[np.bool_] = np.logical_or.reduce(flags.reshape(-1, each), axis=1)
    return whole


def _integers(spec: TensorSpec, lanes: Lanes) -> NDArray[Any]:
    return lanes.view(np.dtype(spec.dtype))


def _values(spec: TensorSpec, lanes: Lanes, exponent: int) -> Floats:
    """Values times 2 to the minus `exponent`."""
    dtype, kind = spec.dtype, spec.element.kind
    if dtype == "bfloat16":
        wide: NDArray[Any] = (lanes.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif kind == "float8":
        return _float8(dtype)[lanes]
    elif kind == "complex":
        wide = lanes.view(np.float32 if lanes.itemsize == 4 else np.float64)
    elif kind == "boolean":
        wide = lanes
    else:
        wide = lanes.view(np.dtype(dtype))
    result: Floats = wide.astype(np.float64)
    return np.ldexp(result, -exponent) if exponent else result


def _exponent(spec: TensorSpec, lanes: Lanes) -> int:
    """The power of two to divide by, so that squares are numbers; 0 nearly always."""
    if spec.dtype not in ("float64", "complex128"):
        return 0
    most = 0.0
    for at in range(0, spec.lane_count, _CHUNK):
        sizes = np.abs(lanes[at : at + _CHUNK].view(np.float64))
        most = max(most, float(np.max(sizes, initial=0.0, where=np.isfinite(sizes))))
    exponent = math.frexp(most)[1] if most else 0
    return exponent if abs(exponent) > _SAFE else 0


def _scaled(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


@cache
def _float8(dtype: str) -> Floats:
    """The value of each of the 256 patterns of bits."""
    import torch

    patterns = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(getattr(torch, dtype))
    table: Floats = patterns.to(torch.float32).to(torch.float64).numpy()
    return table
