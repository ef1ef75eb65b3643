"""Incremental updates: from a request to the values a tensor will have.

The arithmetic runs once, here, in single precision for half types and in the tensor's own
precision otherwise, each operation rounded on its own, and rounds once to the stored dtype. What
the ledger keeps is the resulting bits, so this code is never run again on replay.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from ledger.canonical import canonical
from ledger.deltas import tile_elements, tile_starts
from ledger.digest import content_digest
from ledger.errors import InvalidRequest, NotFound
from ledger.tensors import TensorSpec, lanes

# Above this a float stands for several whole numbers.
_WHOLE_FLOATS = 2.0**53

UPDATE_TYPES = ("additive", "multiplicative", "replace")


@dataclass
class IncrementalUpdateRequest:
    """One change to one parameter.

    additive `w + lr·u`, multiplicative `w·(1 + lr·u)`, replace `w = u`. `update_data` (u) has the
    parameter's shape, or is flat with its element count, or is one number. `learning_rate` is in
    [0, 1]. `metadata` is any JSON object. With `expected_seq` the update is applied only while
    that is the seq of the last state change.
    """

    parameter_name: str
    update_data: Any
    learning_rate: float = 0.01
    update_type: str = "additive"
    metadata: Mapping[str, Any] | None = None
    idempotency_key: str | None = None
    expected_seq: int | None = None
    actor: str | None = None
    reason: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """A request that fits its parameter.

    `operand` has the parameter's element count, flat, or is 0-d for one number; its dtype is
    float64 or what the caller's tensor had. `digest` is what identifies the request.
    """

    spec: TensorSpec
    operand: torch.Tensor
    learning_rate: float
    update_type: str
    metadata: str | None
    facts: Mapping[str, Any]

    @property
    def digest(self) -> bytes:
        """The digest of the canonical request, 32 bytes."""
        return content_digest(canonical({**self.facts, "metadata": self.metadata}))


class NonFiniteResult(Exception):
    """The update is well-formed but would put NaN or infinity into the weights."""

    def __init__(self, name: str, count: int) -> None:
        super().__init__(f"update would make {count} value(s) of {name!r} NaN or infinite")


def validate(request: IncrementalUpdateRequest, specs: Mapping[str, TensorSpec]) -> Update:
    """Check a request against the parameters of a model, by bare name.

    Raises NotFound for an unknown parameter and InvalidRequest, which names the field and what
    was expected, for everything else.
    """
    name = request.parameter_name
    if not isinstance(name, str):
        raise InvalidRequest("parameter_name must be a string", param="parameter_name")
    spec = specs.get(name)
    if spec is None:
        raise NotFound(f"Parameter {name!r} not found", param="parameter_name")
    rate = _learning_rate(request.learning_rate)
    kind = spec.element.kind
    if request.update_type not in UPDATE_TYPES:
        raise InvalidRequest(
            f"update_type must be one of {', '.join(UPDATE_TYPES)}, got {request.update_type!r}",
            param="update_type",
        )
    if kind != "float" and request.update_type != "replace":
        raise InvalidRequest(
            f"parameter {name!r} has dtype {spec.dtype}, which takes update_type replace only",
            param="update_type",
        )
    operand = _fit(_operand(request.update_data, spec), spec)
    return Update(
        spec=spec,
        operand=operand,
        learning_rate=rate,
        update_type=request.update_type,
        metadata=_metadata(request.metadata),
        facts={
            "parameter": name,
            "operation": request.update_type,
            "learning_rate": rate,
            "operand": {
                "digest": content_digest(lanes(operand)).hex(),
                "dtype": str(operand.dtype).removeprefix("torch."),
                "elements": operand.numel(),
            },
        },
    )


def compute(update: Update, before: torch.Tensor) -> torch.Tensor:
    """The parameter's new value: a contiguous tensor of its shape and dtype, on its device.

    `before` is the parameter's current tensor, of any layout; it is only read. Works a tile at a
    time, so the operand is never copied whole. Raises InvalidRequest if the operand is not finite
    or does not fit the dtype, NonFiniteResult if the arithmetic overflows.
    """
    spec = update.spec
    flat = before.detach().reshape(-1)
    after = torch.empty_like(flat)
    step = tile_elements(spec)
    for start in tile_starts(spec):
        old = flat[start : start + step]
        u = update.operand
        if u.dim():
            u = u[start : start + step]
        u = u.to(old.device)
        new = _replaced(u, old, spec) if update.update_type == "replace" else _moved(u, old, update)
        after[start : start + step] = new
    return after.reshape(spec.shape)


def _replaced(u: torch.Tensor, old: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    if spec.element.kind in ("integer", "boolean"):
        return _integers(u, spec).expand_as(old)
    _require_finite(u, spec)
    new = u.to(spec.torch_dtype)
    if not _finite(new) or (spec.element.kind == "float8" and _saturates(u, spec)):
        raise _overflow(spec)
    return new.expand_as(old)


def _saturates(u: torch.Tensor, spec: TensorSpec) -> bool:
    """Casting to an 8-bit float clips what is too large, and e8m0 has no zero and no sign."""
    wide = u.to(torch.float64)
    if spec.dtype == "float8_e8m0fnu" and bool((wide <= 0).any()):
        return True
    return bool((wide.abs() > torch.finfo(spec.torch_dtype).max).any())


def _moved(u: torch.Tensor, old: torch.Tensor, update: Update) -> torch.Tensor:
    spec = update.spec
    compute = torch.float64 if spec.dtype == "float64" else torch.float32
    _require_finite(u, spec)
    u = u.to(compute)
    if not _finite(u):
        raise _overflow(spec)
    rate = torch.tensor(update.learning_rate, dtype=compute, device=old.device)
    step = torch.mul(u, rate)
    if update.update_type == "additive":
        new = torch.add(old.to(compute), step).to(spec.torch_dtype)
    else:
        new = torch.mul(old.to(compute), torch.add(step, 1.0)).to(spec.torch_dtype)
    # Values that were not finite before, such as a mask of -inf, may stay exactly as they were.
    kept = (new == old) | (torch.isnan(new) & torch.isnan(old))
    broken = ~torch.isfinite(new) & ~kept
    if bool(broken.any()):
        raise NonFiniteResult(spec.name, int(broken.sum()))
    return new


def _require_finite(u: torch.Tensor, spec: TensorSpec) -> None:
    if not _finite(u):
        raise InvalidRequest(
            f"update_data for {spec.name!r} must be finite, got NaN or infinity",
            param="update_data",
        )


def _finite(values: torch.Tensor) -> bool:
    if values.dtype.itemsize == 1 and values.dtype.is_floating_point:
        values = values.to(torch.float32)
    return bool(torch.isfinite(values).all())


def _learning_rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidRequest(
            f"learning_rate must be a number in [0, 1], got {value!r:.50}", param="learning_rate"
        )
    return float(value)


def _metadata(value: Mapping[str, Any] | None) -> str | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidRequest("metadata must be a JSON object", param="metadata")
    return canonical(dict(value), param="metadata").decode()


def _operand(data: Any, spec: TensorSpec) -> torch.Tensor:
    if isinstance(data, torch.Tensor):
        if data.layout is not torch.strided or data.is_meta:
            raise _not_numbers(spec, f"a {data.layout} tensor on {data.device}")
        tensor = data.detach()
    elif isinstance(data, np.ndarray | np.generic):
        tensor = _from_numpy(np.asarray(data), spec)
    else:
        tensor = _from_numbers(data, spec)
    wanted = spec.element.kind
    if tensor.dtype == torch.bool and wanted != "boolean":
        raise _not_numbers(spec, "booleans")
    if tensor.is_complex() and wanted != "complex":
        raise _not_numbers(spec, "complex numbers")
    return tensor


def _from_numpy(array: np.ndarray[Any, Any], spec: TensorSpec) -> torch.Tensor:
    if array.dtype.kind not in "biufc":
        raise _not_numbers(spec, f"values of dtype {array.dtype}")
    try:
        shareable = array.flags.writeable and array.flags.c_contiguous
        return torch.from_numpy(array if shareable else np.array(array, order="C"))
    except TypeError:
        raise _not_numbers(spec, f"values of dtype {array.dtype}") from None


def _from_numbers(data: Any, spec: TensorSpec) -> torch.Tensor:
    """A number or nested lists of numbers, as float64, or as int64 for integer parameters."""
    types = leaf_types(data)
    if not types <= {int, float}:
        if types == {bool} and spec.element.kind == "boolean":
            return torch.tensor(data)
        odd = sorted(t.__name__ for t in types - {int, float})
        raise _not_numbers(spec, f"values of type {', '.join(odd)}")
    exact = spec.element.kind in ("integer", "boolean")
    integers = np.uint64 if spec.dtype == "uint64" else np.int64
    try:
        array = np.array(data, dtype=integers if exact and types == {int} else np.float64)
    except OverflowError:
        raise _overflow(spec) from None
    except ValueError:
        raise InvalidRequest(
            f"update_data is ragged; parameter {spec.name!r} has shape {_shape(spec)}",
            param="update_data",
        ) from None
    if exact and types != {int} and np.any(np.abs(array) > _WHOLE_FLOATS):
        raise _overflow(spec)
    return torch.from_numpy(array)


def leaf_types(data: Any) -> set[type]:
    """The types of what nested lists hold."""
    level: list[Any] = [data]
    types: set[type] = set()
    while level:
        kinds = set(map(type, level))
        if list not in kinds and tuple not in kinds:
            return types | kinds
        types |= kinds - {list, tuple}
        level = list(chain.from_iterable(x for x in level if type(x) in (list, tuple)))
    return types


def _integers(tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """The same whole numbers in the parameter's dtype; an error if that changes any of them."""
    if tensor.dtype == spec.torch_dtype:
        return tensor
    if tensor.is_floating_point():
        _require_finite(tensor, spec)
        tensor = tensor.to(torch.float64)
    given = tensor.cpu().numpy()
    with np.errstate(invalid="ignore"):  # what does not fit is found by comparing
        converted = given.astype(str(spec.dtype))
    if not np.array_equal(converted, given):
        raise InvalidRequest(
            f"update_data must hold whole numbers that fit {spec.dtype} of {spec.name!r}",
            param="update_data",
        )
    return torch.from_numpy(np.array(converted)).to(tensor.device)


def _fit(operand: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    shape = tuple(operand.shape)
    if shape == () or shape == spec.shape or shape == (spec.numel,):
        return operand.reshape(-1) if shape or spec.shape == () else operand
    got = f"{shape[0]} values" if len(shape) == 1 else f"shape {shape}"
    raise InvalidRequest(
        f"parameter {spec.name!r} has shape {_shape(spec)}, got {got}; "
        f"send that shape, {spec.numel} flat values, or one number",
        param="update_data",
    )


def _overflow(spec: TensorSpec) -> InvalidRequest:
    return InvalidRequest(
        f"update_data holds a value that overflows {spec.dtype} of {spec.name!r}",
        param="update_data",
    )


def _not_numbers(spec: TensorSpec, got: str) -> InvalidRequest:
    return InvalidRequest(
        f"update_data for {spec.name!r} ({spec.dtype}) must be numbers, got {got}",
        param="update_data",
    )


def _shape(spec: TensorSpec) -> str:
    return str(spec.shape)
