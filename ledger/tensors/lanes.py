"""Tensors as bits: torch's tensors seen as the lanes that the ledger stores.

Everything the ledger stores, compares or hashes is a flat array of unsigned lanes: one lane an
element, two for complex numbers. Values are never looked at here, so NaN payloads, -0.0 and
denormals come through as they are.
"""

import cmath
import sys
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from weightledger.ledger.errors import InvalidRequest, UnsupportedModel
from weightledger.ledger.tensors import memory
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.spec import DTYPES, Lanes, TensorSpec, check_name, unsupported

TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}
"""Torch's dtype for each that the ledger holds."""

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
# Dtypes that numpy has no name for: their bits are reached through bytes.
_UNKNOWN_TO_NUMPY = {torch.bfloat16} | {
    dtype for dtype, name in _NAMES.items() if DTYPES[name].kind == "float8"
}
_ONE_LANE_NUMPY = {
    dtype: DTYPES[name].lane
    for dtype, name in _NAMES.items()
    if dtype not in _UNKNOWN_TO_NUMPY and DTYPES[name].lanes == 1
}
_FLOATS = (torch.float32, torch.float64)
_FEW = 16384  # values; with more of them torch's threads gain more than a turn costs
_STACK_BYTES = 16 * 1024 * 1024


@cache
def name_of(dtype: torch.dtype) -> str:
    """Torch's name of a dtype without its prefix, whether or not the ledger holds it."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(spec: TensorSpec) -> torch.dtype:
    """Torch's dtype of a tensor with this spec."""
    return TORCH_DTYPES[spec.dtype]


def spec_of(name: str, tensor: torch.Tensor) -> TensorSpec:
    """The spec of `tensor`; raises UnsupportedModel if the ledger cannot hold it."""
    check_tensor(name, tensor)
    return TensorSpec(name, name_of(tensor.dtype), tuple(tensor.shape))


def require_tensors(source: object) -> None:
    """Raise UnsupportedModel unless it is a module, or a dict of tensors by their names."""
    if isinstance(source, torch.nn.Module):
        return
    if not isinstance(source, Mapping):
        raise UnsupportedModel(
            f"a torch.nn.Module or a dict of tensors is expected, got a {type(source).__name__}"
        )
    for name, tensor in source.items():
        check_name(name)
        if not isinstance(tensor, torch.Tensor):
            raise UnsupportedModel(f"{name!r} is no tensor, but a {type(tensor).__name__}")


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    """Raise UnsupportedModel unless the bits of `tensor` are all there is to it.

    Refused: unknown, quantized and sub-byte dtypes, sparse and nested layouts, tensors without
    data (meta, lazy), and wrapper subclasses that keep their values in other tensors.
    """
    if is_lazy(tensor):
        raise unsupported(name, name_of(tensor.dtype), "is not initialised yet")
    if tensor.dtype not in _NAMES:
        raise unsupported(name, name_of(tensor.dtype), "has a dtype that the ledger does not hold")
    if tensor.is_nested:
        raise unsupported(name, name_of(tensor.dtype), "is nested, of tensors of many shapes")
    if tensor.layout is not torch.strided:
        raise unsupported(
            name, name_of(tensor.dtype), f"has layout {tensor.layout}, not torch.strided"
        )
    if tensor.is_meta:
        raise unsupported(name, name_of(tensor.dtype), "is on the meta device and has no values")
    if hasattr(tensor, "__tensor_flatten__"):
        wrapper = type(tensor).__name__
        raise unsupported(
            name, name_of(tensor.dtype), f"is a {wrapper}, which keeps its values elsewhere"
        )


def lanes(tensor: torch.Tensor, name: str = "tensor") -> Lanes:
    """The bits of `tensor` as a flat unsigned array in C order, shape (lane count,).

    Shares memory with a contiguous CPU tensor, so writing lanes writes the tensor, whether or
    not it requires grad. Strided, conjugated or non-CPU tensors give a copy: `shares_memory`
    tells which. Raises UnsupportedModel if the ledger cannot hold the tensor, and on a big-endian
    host, whose lanes would not be the stored bytes.
    """
    if sys.byteorder != "little":
        raise UnsupportedModel("the ledger's byte formats need a little-endian host")
    if type(tensor) is torch.Tensor:
        # The usual case, without the calls that take most of a small tensor's time: `numpy` raises
        # for whatever is not plain memory.
        lane_dtype = _ONE_LANE_NUMPY.get(tensor.dtype)
        if lane_dtype is not None and tensor.is_contiguous():
            try:
                plain_lanes: Lanes = tensor.numpy().reshape(-1).view(lane_dtype)
            except (RuntimeError, TypeError):
                pass
            else:
                return plain_lanes
    check_tensor(name, tensor)
    lane = DTYPES[_NAMES[tensor.dtype]].lane
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
    return memory.empty(spec.shape, torch_dtype(spec))


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
    plain = tensor.detach()
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    if not plain.is_cpu or plain.nbytes < memory.LEAST_BYTES:
        return plain.clone(memory_format=torch.contiguous_format)
    return memory.empty(tuple(plain.shape), plain.dtype).copy_(plain)


def tensor_digest(tensor: torch.Tensor) -> bytes:
    """The digest of a tensor's bytes, 32 bytes; its dtype and shape are not in it."""
    return content_digest(lanes(tensor))


def flat(values: torch.Tensor) -> torch.Tensor:
    """The values in C order, [n]: a view where they stand so in memory."""
    if values.dim() == 1:
        return values
    return torch.from_numpy(values.numpy().reshape(-1)) if _is_few(values) else values.reshape(-1)


def stacked(tensors: Sequence[object]) -> torch.Tensor | None:
    """A copy of all, flat, [how many, n]; None unless they are floats of one dtype and shape in
    memory, some but few.

    A thousand are copied in a tenth of the time that calls for each of them take.
    """
    if len(tensors) < 2 or set(map(type, tensors)) != {torch.Tensor}:
        return None
    alike: list[torch.Tensor] = list(tensors)  # type: ignore[arg-type]
    kinds = {(t.dtype, t.layout, t.is_cpu, t.is_nested, t.requires_grad) for t in alike}
    if not any(kinds == {(dtype, torch.strided, True, False, False)} for dtype in _FLOATS):
        return None
    first = alike[0]
    few = first.dim() and 0 < first.numel() <= _FEW and first.nbytes * len(alike) <= _STACK_BYTES
    if not few or len({t.shape for t in alike}) > 1:
        return None
    return torch.stack(alike).flatten(1)


def _is_few(values: torch.Tensor) -> bool:
    """Whether numpy is to do it: unlike torch it does not let go of the interpreter, and who does
    so between two steps of a small update waits until another thread has had its turn."""
    return (
        values.dtype in _FLOATS
        and values.numel() <= _FEW
        and not values.requires_grad
        and shares_memory(values)
    )


def finite(values: torch.Tensor) -> bool:
    """Whether every value is a number."""
    if _is_few(values):
        return bool(np.isfinite(values.numpy()).all())
    if values.dtype.itemsize == 1 and values.dtype.is_floating_point:
        values = values.to(torch.float32)
    # NaN and infinity carry over into the sum, which is ten times as fast to work out; a sum that
    # overflows says nothing.
    return cmath.isfinite(values.sum().item()) or bool(torch.isfinite(values).all())
