"""Tensors as bits: which dtypes the ledger holds and how their bytes are seen.

Everything the ledger stores, compares or hashes is a flat array of unsigned lanes: one lane an
element, two for complex numbers. Values are never looked at here, so NaN payloads, -0.0 and
denormals come through as they are.
"""

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.parameter import is_lazy

from ledger import memory
from ledger.errors import InvalidRequest, UnsupportedModel

Kind = Literal["float", "integer", "boolean", "complex", "float8"]
Lanes: TypeAlias = "NDArray[np.unsignedinteger[Any]]"

WEIGHTS = "weights/"
"""Prefix of parameters and persistent buffers in a state's names: `weights/fc.weight`."""

# A state's digest is taken over lines of tab-separated fields; surrogates have no UTF-8 form.
_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ElementType:
    """One dtype: torch's, the unsigned lane its bits are seen as, lanes an element, and kind.

    `float` takes every update type; the other kinds can only be replaced.
    """

    torch: torch.dtype
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
    rows: tuple[tuple[Kind, int, int, tuple[torch.dtype, ...]], ...] = (
        ("float", 2, 1, (torch.float16, torch.bfloat16)),
        ("float", 4, 1, (torch.float32,)),
        ("float", 8, 1, (torch.float64,)),
        ("integer", 1, 1, (torch.int8, torch.uint8)),
        ("integer", 2, 1, (torch.int16, torch.uint16)),
        ("integer", 4, 1, (torch.int32, torch.uint32)),
        ("integer", 8, 1, (torch.int64, torch.uint64)),
        ("boolean", 1, 1, (torch.bool,)),
        ("complex", 4, 2, (torch.complex64,)),
        ("complex", 8, 2, (torch.complex128,)),
        ("float8", 1, 1, (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2)),
        ("float8", 1, 1, (torch.float8_e5m2fnuz, torch.float8_e8m0fnu)),
    )
    for kind, lane_bytes, lanes_each, dtypes in rows:
        for dtype in dtypes:
            lane = np.dtype(f"u{lane_bytes}")
            yield _name(dtype), ElementType(dtype, lane, lanes_each, kind)


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


DTYPES: dict[str, ElementType] = dict(_table())
"""Every dtype the ledger holds, by torch's name without its prefix."""

_ELEMENTS = {element.torch: element for element in DTYPES.values()}
# Dtypes that numpy has no name for: their bits are reached through bytes.
_UNKNOWN_TO_NUMPY = {torch.bfloat16} | {e.torch for e in DTYPES.values() if e.kind == "float8"}


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

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> "TensorSpec":
        """The spec of `tensor`; raises UnsupportedModel if the ledger cannot hold it."""
        check_tensor(name, tensor)
        return cls(name, _name(tensor.dtype), tuple(tensor.shape))

    @property
    def element(self) -> ElementType:
        """This dtype's row of DTYPES."""
        return DTYPES[self.dtype]

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype].torch

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
    if not name or _UNWRITABLE.search(name):
        raise UnsupportedModel(
            f"tensor name {name!r} is empty or holds a control character or a lone surrogate",
            param=ascii(name),
        )


def element_type(name: str, dtype: str) -> ElementType:
    """The row of DTYPES for `dtype`; raises UnsupportedModel that names tensor `name`."""
    found = DTYPES.get(dtype)
    if found is None:
        raise _unsupported(name, dtype, "has a dtype that the ledger does not hold")
    return found


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    """Raise UnsupportedModel unless the bits of `tensor` are all there is to it.

    Refused: unknown, quantized and sub-byte dtypes, sparse and nested layouts, tensors without
    data (meta, lazy), and wrapper subclasses that keep their values in other tensors.
    """
    if is_lazy(tensor):
        raise _unsupported(name, tensor.dtype, "is not initialised yet")
    if tensor.dtype not in _ELEMENTS:
        raise _unsupported(name, tensor.dtype, "has a dtype that the ledger does not hold")
    if tensor.is_nested or tensor.layout is not torch.strided:
        raise _unsupported(name, tensor.dtype, f"has layout {tensor.layout}, not torch.strided")
    if tensor.is_meta:
        raise _unsupported(name, tensor.dtype, "is on the meta device and has no values")
    if hasattr(tensor, "__tensor_flatten__"):
        wrapper = type(tensor).__name__
        raise _unsupported(name, tensor.dtype, f"is a {wrapper}, which keeps its values elsewhere")


def lanes(tensor: torch.Tensor, name: str = "tensor") -> Lanes:
    """The bits of `tensor` as a flat unsigned array in C order, shape (lane count,).

    Shares memory with a contiguous CPU tensor, so writing lanes writes the tensor, whether or
    not it requires grad. Strided, conjugated or non-CPU tensors give a copy: `shares_memory`
    tells which. Raises UnsupportedModel if the ledger cannot hold the tensor.
    """
    require_little_endian()
    check_tensor(name, tensor)
    lane = _ELEMENTS[tensor.dtype].lane
    plain = tensor.detach()
    if not shares_memory(plain):
        plain = plain.cpu().resolve_conj().resolve_neg().contiguous()
    if plain.dtype not in _UNKNOWN_TO_NUMPY:
        return plain.numpy().reshape(-1).view(lane)
    # Not view(-1): a contiguous tensor of one element may have any stride, and would keep it.
    flat = plain.as_strided((plain.numel(),), (1,))
    return flat.view(torch.uint8).numpy().view(lane)


def shares_memory(tensor: torch.Tensor) -> bool:
    """Whether `lanes(tensor)` is a view of the tensor rather than a copy."""
    return tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def empty(spec: TensorSpec) -> torch.Tensor:
    """A new contiguous CPU tensor of this spec with undefined values."""
    return memory.empty(spec.shape, spec.torch_dtype)


def from_bytes(spec: TensorSpec, data: bytes | bytearray | memoryview) -> torch.Tensor:
    """A new tensor of this spec holding a copy of `data` (little-endian, C order).

    Raises InvalidRequest if `data` is not exactly `spec.nbytes` long.
    """
    view = memoryview(data).cast("B")
    if len(view) != spec.nbytes:
        raise InvalidRequest(
            f"tensor {spec.name!r} {spec.dtype}{list(spec.shape)} takes {spec.nbytes} bytes, "
            f"got {len(view)}",
            param=spec.name,
        )
    tensor = empty(spec)
    lanes(tensor, spec.name).view(np.uint8)[:] = np.frombuffer(view, np.uint8)
    return tensor


def clone(tensor: torch.Tensor) -> torch.Tensor:
    """An exact contiguous copy on the same device, detached, with every bit kept."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    if not plain.is_cpu:
        return plain.clone(memory_format=torch.contiguous_format)
    return memory.empty(tuple(plain.shape), plain.dtype).copy_(plain)


def require_little_endian() -> None:
    """Raise UnsupportedModel on a big-endian host, whose lanes would not be the stored bytes."""
    if sys.byteorder != "little":
        raise UnsupportedModel("the ledger's byte formats need a little-endian host")


def _unsupported(name: str, dtype: torch.dtype | str, why: str) -> UnsupportedModel:
    held = ", ".join(DTYPES)
    return UnsupportedModel(
        f"tensor {name!r} ({_name(dtype)}) {why}; held are strided tensors of {held}", param=name
    )
