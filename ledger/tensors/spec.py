"""What a tensor is, without its values: the dtypes the ledger holds, by torch's names for them.

Needs no torch; `tensors.lanes` is the bridge to it.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.errors import UnsupportedModel

Kind = Literal["float", "integer", "boolean", "complex", "float8"]
Lanes: TypeAlias = "NDArray[np.unsignedinteger[Any]]"

WEIGHTS = "weights/"
"""Prefix of parameters and persistent buffers in a state's names: `weights/fc.weight`."""

# A state's digest is taken over lines of tab-separated fields; surrogates have no UTF-8 form.
_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ElementType:
    """One dtype: the unsigned lane its bits are seen as, lanes an element, and kind.

    `float` takes every update type; the other kinds can only be replaced.
    """

    lane: np.dtype[np.unsignedinteger[Any]]
    lanes: int
    kind: Kind

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.lane.itemsize * self.lanes

    @property
    def ordered(self) -> bool:
        """Whether deltas are taken in the order of the numbers rather than of the bits."""
        return self.kind == "float"


def _table() -> Iterator[tuple[str, ElementType]]:
    rows: tuple[tuple[Kind, int, int, tuple[str, ...]], ...] = (
        ("float", 2, 1, ("float16", "bfloat16")),
        ("float", 4, 1, ("float32",)),
        ("float", 8, 1, ("float64",)),
        ("integer", 1, 1, ("int8", "uint8")),
        ("integer", 2, 1, ("int16", "uint16")),
        ("integer", 4, 1, ("int32", "uint32")),
        ("integer", 8, 1, ("int64", "uint64")),
        ("boolean", 1, 1, ("bool",)),
        ("complex", 4, 2, ("complex64",)),
        ("complex", 8, 2, ("complex128",)),
        ("float8", 1, 1, ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2")),
        ("float8", 1, 1, ("float8_e5m2fnuz", "float8_e8m0fnu")),
    )
    for kind, lane_bytes, lanes_each, dtypes in rows:
        for dtype in dtypes:
            yield dtype, ElementType(np.dtype(f"u{lane_bytes}"), lanes_each, kind)


DTYPES: dict[str, ElementType] = dict(_table())
"""Every dtype the ledger holds, by torch's name without its prefix."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is, without its values.

    `dtype` is torch's name without its prefix ("float32"); `shape` is () for a 0-d tensor.
    Raises UnsupportedModel for a name or a dtype that the ledger cannot hold.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        check_name(self.name)
        element_type(self.name, self.dtype)

    @property
    def element(self) -> ElementType:
        """This dtype's row of DTYPES."""
        return DTYPES[self.dtype]

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a 0-d tensor."""
        return math.prod(self.shape)

    @property
    def lane_count(self) -> int:
        """Number of lanes: elements, twice that for complex dtypes."""
        return math.prod(self.shape) * DTYPES[self.dtype].lanes

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def check_name(name: str) -> None:
    """Raise UnsupportedModel unless `name` can stand in a line of a state's digest."""
    if not isinstance(name, str) or not name or _UNWRITABLE.search(name):
        raise UnsupportedModel(
            f"tensor name {name!r} is no string, empty, or holds a control character or a lone"
            " surrogate",
            param=ascii(name),
        )


def element_type(name: str, dtype: str) -> ElementType:
    """The row of DTYPES for `dtype`; raises UnsupportedModel that names tensor `name`."""
    found = DTYPES.get(dtype)
    if found is None:
        raise unsupported(name, dtype, "has a dtype that the ledger does not hold")
    return found


def unsupported(name: str, dtype: str, why: str) -> UnsupportedModel:
    """The error for a tensor that the ledger cannot hold; `why` completes the sentence."""
    held = ", ".join(DTYPES)
    return UnsupportedModel(
        f"tensor {name!r} ({dtype}) {why}; held are strided tensors of {held}", param=name
    )
