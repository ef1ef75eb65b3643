"""From an update and the value before it to the value after it.

The arithmetic runs once, here, in single precision for half types and in the tensor's own
precision otherwise, each operation rounded on its own, and rounds once to the stored dtype. What
the ledger keeps is the resulting bits, so this code is never run again on replay; only low-rank
factors are kept as they are (`ledger.codecs.factors`).
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from weightledger.ledger.codecs.factors import apply_factors
from weightledger.ledger.codecs.tiling import tile_elements, tile_starts
from weightledger.ledger.tensors.lanes import clone, empty, finite, stacked, torch_dtype
from weightledger.ledger.tensors.rounding import rounded
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.operands import integers, overflow, require_finite
from weightledger.ledger.writing.requests import Update

# Up to here a tensor is worked out in one piece.
_AT_ONCE_BYTES = 256 * 1024

_SIMPLE = (torch.float32, torch.float64)
# Half of the least float32 above zero: what is no larger is zero as a float32.
_ROUNDED_TO_ZERO = 2.0**-150
# Halfway from its largest value, 448, to the next one that it would have; a tie goes to 448.
_E4M3FN_ROUNDS_DOWN = 464.0
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class NonFiniteResult(Exception):
    """The update is well-formed but would put NaN or infinity into the weights."""

    def __init__(self, name: str, count: int) -> None:
        super().__init__(f"update would make {count} value(s) of {name!r} NaN or infinite")


def compute(update: Update, before: torch.Tensor) -> torch.Tensor:
    """The parameter's new value: a contiguous tensor of its shape and dtype, on its device.

    `before` is the parameter's current tensor, of any layout; it is only read. Works a tile at a
    time, so the operand is never copied whole. Raises InvalidRequest if the operand is not finite
    or does not fit the dtype, NonFiniteResult if the arithmetic overflows.
    """
    spec = update.spec
    if update.factors is not None:
        after = clone(before)
        if update.learning_rate == 0:
            return after
        apply_factors(after, update.factors, spec)
        _require_finite_result(after, before.reshape(spec.shape), spec)
        return after
    u = update.operand
    assert u is not None
    quick = moved_quickly([update], before)
    if quick is not None:
        return quick
    if update.indices is not None:
        after = clone(before)
        flat = after.view(-1)
        where = update.indices.to(flat.device)
        new = _new_values(u.to(flat.device), flat.index_select(0, where), update)
        _scatter(flat, where, new.expand(len(where)))
        return after
    flat = before.detach().reshape(-1)
    if spec.nbytes <= _AT_ONCE_BYTES and update.update_type != "replace":
        return _moved(u, flat, update).reshape(spec.shape)
    after = empty(spec).view(-1) if flat.is_cpu else torch.empty_like(flat)
    step = tile_elements(spec)
    for start in tile_starts(spec):
        old = flat[start : start + step]
        part = u[start : start + step] if u.dim() else u
        after[start : start + step] = _new_values(part.to(old.device), old, update)
    return after.reshape(spec.shape)


def _scatter(flat: torch.Tensor, where: torch.Tensor, new: torch.Tensor) -> None:
    """Write values at positions, as bits: scattering float16 changes NaNs that it leaves alone."""
    bits = _BITS.get(flat.itemsize)
    if bits is None:
        flat.index_copy_(0, where, new)
    else:
        flat.view(bits).scatter_(0, where, new.view(bits))


def _new_values(u: torch.Tensor, old: torch.Tensor, update: Update) -> torch.Tensor:
    if update.update_type == "replace":
        return _replaced(u, old, update.spec)
    return _moved(u, old, update)


def _replaced(u: torch.Tensor, old: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    if spec.element.kind in ("integer", "boolean"):
        return integers(u, spec).expand_as(old)
    require_finite(u, spec)
    new = rounded(u, torch_dtype(spec))
    if not finite(new) or (spec.element.kind == "float8" and _saturates(u, spec)):
        raise overflow(spec)
    return new.expand_as(old)


def _saturates(u: torch.Tensor, spec: TensorSpec) -> bool:
    """Whether casting clips a value: e4m3fn has no infinity for what rounds to more than its
    largest, and e8m0 has no zero and no sign."""
    wide = u.to(torch.float64)
    if spec.dtype == "float8_e8m0fnu":
        return bool((wide <= 0).any())
    return spec.dtype == "float8_e4m3fn" and bool((wide.abs() > _E4M3FN_ROUNDS_DOWN).any())


def _moved(u: torch.Tensor, old: torch.Tensor, update: Update) -> torch.Tensor:
    spec, rate = update.spec, update.learning_rate
    compute = torch.float64 if spec.dtype == "float64" else torch.float32
    wide, before = u.to(old.device, compute), old.to(dtype=compute)
    scale = torch.scalar_tensor(rate, dtype=compute)
    if not scale:  # -0.0 + 0.0 would be 0.0: nothing is added at all
        _require_fitting(u, wide, spec)
        return old.clone()
    # One multiplication and one addition, each rounded: never a fused one.
    step = torch.mul(wide, scale)
    if update.update_type == "additive":
        moved = torch.add(before, step)
    else:
        moved = torch.mul(before, torch.add(step, 1.0))
    new = moved.to(dtype=torch_dtype(spec))
    # No operand that is not finite leads to finite values, whatever the rate.
    if not new.numel() or not finite(new):
        _require_fitting(u, wide, spec)
        _require_finite_result(new, old, spec)
    return new


def moved_quickly(updates: Sequence[Update], old: torch.Tensor) -> torch.Tensor | None:
    """`compute` of one after the other on a small float32 tensor; None where anything is special.

    Bit for bit the same, by a compiled loop, whose call costs a tenth of torch's.
    """
    if not old.is_cpu or old.nbytes > _AT_ONCE_BYTES or old.dtype != torch.float32:
        return None
    operands: list[torch.Tensor] = []
    for update in updates:
        u = update.operand
        if (
            update.learning_rate <= _ROUNDED_TO_ZERO
            or u is None
            or update.indices is not None
            or update.update_type == "replace"
            or u.dtype not in _SIMPLE
            or not u.is_cpu
        ):
            return None
        operands.append(u)
    loops, moved, finite = _loops(), old.detach().numpy().flatten(), False
    rows = stacked(operands)
    if rows is None:
        for update, u in zip(updates, operands, strict=True):
            values = u.numpy()
            if not values.ndim or not values.flags.c_contiguous:
                values = np.ascontiguousarray(np.broadcast_to(values, moved.shape))
            additive = update.update_type == "additive"
            finite = loops.step(moved, values, update.learning_rate, additive)
    else:
        rates = np.array([update.learning_rate for update in updates])
        additives = np.array([update.update_type == "additive" for update in updates])
        finite = loops.steps(moved, rows.numpy(), rates, additives)
    # Nothing finite comes of what is not: one look at the end tells of every step.
    return torch.from_numpy(moved.reshape(old.shape)) if moved.size and finite else None


def warm() -> None:
    """Compile or load the loops that small updates are worked out by."""
    for dtype in (np.float32, np.float64):
        moved, operand = np.zeros(1, np.float32), np.zeros(1, dtype)
        _loops().step(moved, operand, 0.5, True)
        _loops().steps(moved, operand[None], np.array([0.5]), np.array([True]))


@cache
def _loops() -> Any:
    """The compiled loops; numba is imported with them."""
    from weightledger.ledger.writing import compiled_arithmetic

    return compiled_arithmetic


def _require_fitting(u: torch.Tensor, wide: torch.Tensor, spec: TensorSpec) -> None:
    """InvalidRequest unless an operand is finite, and still is in the dtype that is computed in."""
    require_finite(u, spec)
    if not finite(wide):
        raise overflow(spec)


def _require_finite_result(new: torch.Tensor, old: torch.Tensor, spec: TensorSpec) -> None:
    """Values that were not finite before, such as a mask of -inf, may stay exactly as they were."""
    if finite(new):
        return
    kept = (new == old) | (torch.isnan(new) & torch.isnan(old))
    broken = ~torch.isfinite(new) & ~kept
    if bool(broken.any()):
        raise NonFiniteResult(spec.name, int(broken.sum()))
