"""What a caller sent for a parameter, as tensors that fit it.

Numbers, nested lists, numpy arrays and tensors come in; flat tensors of the right length go out,
or an InvalidRequest that names the field, the parameter's dtype and shape, and what was got.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from weightledger.ledger.codecs.factors import Factors, matrix_shape, working_dtype
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.tensors.lanes import finite, flat, stacked, torch_dtype
from weightledger.ledger.tensors.spec import TensorSpec

# Above this a float stands for several whole numbers.
_WHOLE_FLOATS = 2.0**53

_NESTED = frozenset({list, tuple})


def operand(data: Any, spec: TensorSpec, row: torch.Tensor | None = None) -> torch.Tensor:
    """The values sent for a whole parameter: flat, one for each element, or 0-d for one number.

    `row` is what `flattened` has of them.
    """
    if row is not None:
        _require_fit(data.shape, spec)
        return row
    values = _values(data, spec)
    _require_fit(values.shape, spec)
    return flat(values) if values.shape == spec.shape else values


def flattened(sent: Sequence[Any]) -> Sequence[torch.Tensor | None]:
    """Of the values sent for many updates, those that are small tensors alike: a copy, flat."""
    rows = stacked(sent)
    return [None] * len(sent) if rows is None else rows.unbind()


def at_indices(data: Any, indices: Any, spec: TensorSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """(ascending flat int64 positions, their values) of a sparse update.

    `indices` are unique positions in C order, in any order; `data` has one value for each, or is
    one number, which stays 0-d.
    """
    where = _positions(indices, spec)
    values = _values(data, spec)
    if values.dim() and tuple(values.shape) != tuple(where.shape):
        raise InvalidRequest(
            f"update_data has shape {tuple(values.shape)} for {len(where)} indices of parameter "
            f"{spec.name!r}; send one value for each, or one number",
            param="update_data",
        )
    if bool((where[1:] > where[:-1]).all()):
        return where, values
    ordered, order = torch.sort(where)
    if bool((ordered[1:] == ordered[:-1]).any()):
        twice = int(ordered[1:][ordered[1:] == ordered[:-1]][0])
        raise InvalidRequest(f"indices names element {twice} twice", param="indices")
    return ordered, values[order.to(values.device)] if values.dim() else values


def low_rank(value: Any, spec: TensorSpec, rate: float) -> Factors:
    """The factors of a low-rank update, the learning rate multiplied into `a` with one rounding.

    `value` is a mapping with `a` [rows, rank] and `b` [rank, columns]; a parameter of more than
    two dimensions is seen as [first dimension, all the others].
    """
    if not isinstance(value, Mapping) or set(value) != {"a", "b"}:
        raise InvalidRequest(
            "factors must have a [rows, rank] and b [rank, columns]", param="factors"
        )
    if spec.element.kind != "float" or len(spec.shape) < 2:
        raise InvalidRequest(
            f"factors need a float parameter of two or more dimensions; {spec.name!r} is "
            f"{spec.dtype} {spec.shape}",
            param="factors",
        )
    a, b = _matrix(value["a"], "a", spec), _matrix(value["b"], "b", spec)
    rows, columns = matrix_shape(spec)
    rank = a.shape[1]
    if a.shape[0] != rows or b.shape != (rank, columns) or not 1 <= rank <= min(rows, columns):
        raise InvalidRequest(
            f"parameter {spec.name!r} has shape {spec.shape}: factors must have a [{rows}, r] and "
            f"b [r, {columns}] with r from 1 to {min(rows, columns)}, got {list(a.shape)} and "
            f"{list(b.shape)}",
            param="factors",
        )
    scaled = torch.mul(a.to(working_dtype(spec)), torch.tensor(rate, dtype=working_dtype(spec)))
    return Factors(scaled.T.contiguous(), b.to(working_dtype(spec)).contiguous())


def integers(tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """The same whole numbers in the parameter's dtype; an error if that changes any of them."""
    if tensor.dtype == torch_dtype(spec):
        return tensor
    if tensor.is_floating_point():
        require_finite(tensor, spec)
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


def require_finite(u: torch.Tensor, spec: TensorSpec, param: str = "update_data") -> None:
    """Raise InvalidRequest for NaN or infinity."""
    if not finite(u):
        raise InvalidRequest(
            f"{param} for {spec.name!r} must be finite, got NaN or infinity", param=param
        )


def overflow(spec: TensorSpec) -> InvalidRequest:
    """The error for a value that is too large for the parameter."""
    return InvalidRequest(
        f"update_data holds a value that overflows {spec.dtype} of {spec.name!r}",
        param="update_data",
    )


def leaf_types(data: Any) -> set[type]:
    """The types of what nested lists hold; numpy's numbers count as Python's."""
    lists: list[Any] = [[data]]
    types: set[type] = set()
    while lists:
        # Most often these are the last ones: what they hold is looked at where it is.
        types.update(map(type, chain.from_iterable(lists)))
        if types.isdisjoint(_NESTED):
            break
        lists = [x for x in chain.from_iterable(lists) if type(x) in _NESTED]
        types -= _NESTED
    return {_plain(kind) for kind in types}


def _plain(kind: type) -> type:
    """Python's type of a numpy scalar's."""
    if issubclass(kind, np.floating):
        return float
    return int if issubclass(kind, np.integer) else kind


def _matrix(value: Any, name: str, spec: TensorSpec) -> torch.Tensor:
    if isinstance(value, np.ndarray):
        value = _from_numpy(value, spec)
    if not isinstance(value, torch.Tensor):
        value = _from_numbers(value, spec, f"factors.{name}")
    if value.dim() != 2 or not value.is_floating_point():
        raise InvalidRequest(
            f"factors.{name} must be a matrix of floats, got {value.dtype} {tuple(value.shape)}",
            param="factors",
        )
    matrix: torch.Tensor = value.detach().cpu()
    require_finite(matrix, spec, "factors")
    return matrix


def _positions(indices: Any, spec: TensorSpec) -> torch.Tensor:
    if isinstance(indices, list | tuple) and leaf_types(indices) <= {int}:
        try:
            indices = torch.tensor(indices, dtype=torch.int64)
        except (ValueError, RuntimeError, OverflowError):
            indices = None
    if isinstance(indices, np.ndarray) and indices.dtype.kind in "iu":
        indices = torch.from_numpy(indices.astype(np.int64))
    if (
        not isinstance(indices, torch.Tensor)
        or indices.dim() != 1
        or indices.dtype.is_floating_point
        or indices.dtype.is_complex
        or indices.dtype == torch.bool
    ):
        raise InvalidRequest(
            f"indices must be a flat list of whole numbers, the positions of elements of "
            f"{spec.name!r} in C order",
            param="indices",
        )
    where = indices.detach().cpu().to(torch.int64)
    if len(where) and not 0 <= int(where.min()) <= int(where.max()) < spec.numel:
        raise InvalidRequest(
            f"indices must lie in [0, {spec.numel}) for parameter {spec.name!r} of shape "
            f"{spec.shape}, got {int(where.min())} to {int(where.max())}",
            param="indices",
        )
    return where


def _values(data: Any, spec: TensorSpec) -> torch.Tensor:
    if isinstance(data, torch.Tensor):
        if data.layout is not torch.strided or data.is_meta:
            raise _not_numbers(spec, f"a {data.layout} tensor on {data.device}")
        tensor = data.detach()
    elif isinstance(data, np.ndarray | np.generic):
        if np.ma.is_masked(data):
            raise _not_numbers(spec, "a masked array, whose mask is no part of an update")
        tensor = _from_numpy(np.asarray(data), spec)
    else:
        tensor = _from_numbers(data, spec)
    wanted = spec.element.kind
    if tensor.dtype == torch.bool and wanted != "boolean":
        raise _not_numbers(spec, "booleans")
    if tensor.dtype.is_complex and wanted != "complex":
        raise _not_numbers(spec, "complex numbers")
    return tensor


def _from_numpy(array: np.ndarray[Any, Any], spec: TensorSpec) -> torch.Tensor:
    if array.dtype.kind not in "biufc":
        raise _not_numbers(spec, f"values of dtype {array.dtype}")
    try:
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        shareable = array.flags.writeable and array.flags.c_contiguous
        return torch.from_numpy(array if shareable else np.array(array, order="C"))
    except TypeError:
        raise _not_numbers(spec, f"values of dtype {array.dtype}") from None


def _from_numbers(data: Any, spec: TensorSpec, param: str = "update_data") -> torch.Tensor:
    """A number or nested lists of numbers, as float64, or as int64 for integer parameters."""
    types = leaf_types(data)
    if not types <= {int, float}:
        if types == {bool} and spec.element.kind == "boolean":
            return torch.tensor(data)
        odd = sorted(t.__name__ for t in types - {int, float})
        raise _not_numbers(spec, f"values of type {', '.join(odd)}", param)
    exact = spec.element.kind in ("integer", "boolean")
    integral = np.uint64 if spec.dtype == "uint64" else np.int64
    try:
        array = np.array(data, dtype=integral if exact and types == {int} else np.float64)
    except OverflowError:
        raise overflow(spec) from None
    except ValueError:
        raise InvalidRequest(
            f"{param} is ragged; parameter {spec.name!r} has shape {spec.shape}", param=param
        ) from None
    if exact and types != {int} and np.any(np.abs(array) > _WHOLE_FLOATS):
        raise overflow(spec)
    return torch.from_numpy(array)


def _require_fit(shape: torch.Size, spec: TensorSpec) -> None:
    if shape == spec.shape or shape == () or shape == (spec.numel,):
        return
    got = f"{shape[0]} values" if len(shape) == 1 else f"shape {tuple(shape)}"
    raise InvalidRequest(
        f"parameter {spec.name!r} has shape {spec.shape}, got {got}; "
        f"send that shape, {spec.numel} flat values, or one number",
        param="update_data",
    )


def _not_numbers(spec: TensorSpec, got: str, param: str = "update_data") -> InvalidRequest:
    return InvalidRequest(
        f"{param} for {spec.name!r} ({spec.dtype}) must be numbers, got {got}", param=param
    )
