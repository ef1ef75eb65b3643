"""Incremental updates: from a request to the values a tensor will have.

The arithmetic runs once, here, in single precision for half types and in the tensor's own
precision otherwise, each operation rounded on its own, and rounds once to the stored dtype. What
the ledger keeps is the resulting bits, so this code is never run again on replay; only low-rank
factors are kept as they are (`ledger.codecs.factors`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from weightledger.ledger.codecs.factors import Factors, apply_factors
from weightledger.ledger.codecs.tiling import tile_elements, tile_starts
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import clone, empty, finite, lanes, torch_dtype
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.operands import (
    at_indices,
    integers,
    low_rank,
    operand,
    overflow,
    require_finite,
)

UPDATE_TYPES = ("additive", "multiplicative", "replace")

# Up to here a tensor is worked out in one piece.
_AT_ONCE_BYTES = 256 * 1024


@dataclass
class IncrementalUpdateRequest:
    """One change to one parameter.

    additive `w + lr·u`, multiplicative `w·(1 + lr·u)`, replace `w = u`. `update_data` (u) has the
    parameter's shape, or is flat with its element count, or is one number. With `indices`, unique
    flat positions in C order, only those elements change and `update_data` has one value for each
    (or is one number). `factors` {"a": [rows, rank], "b": [rank, columns]} stand in the place of
    `update_data`: additive, u = a·b. `learning_rate` is in [0, 1]. `metadata` is any JSON object.
    With `expected_seq` the update is applied only while that is the seq of the last state change.
    """

    parameter_name: str
    update_data: Any = None
    learning_rate: float = 0.01
    update_type: str = "additive"
    metadata: Mapping[str, Any] | None = None
    idempotency_key: str | None = None
    expected_seq: int | None = None
    actor: str | None = None
    reason: str | None = None
    request_id: str | None = None
    indices: Any = None
    factors: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Update:
    """A request that fits its parameter.

    `operand` is flat with one value for each element (or each of `indices`, which ascend), or is
    0-d for one number; its dtype is float64 or what the caller's tensor had. With `factors` there
    is no operand; the learning rate is in them already.
    """

    spec: TensorSpec
    learning_rate: float
    update_type: str
    metadata: str | None
    operand: torch.Tensor | None = None
    indices: torch.Tensor | None = None
    factors: Factors | None = field(default=None)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What the event says about the request: its options, and the digest of what was sent."""
        return {
            "parameter": self.spec.name,
            "operation": self.update_type,
            "learning_rate": self.learning_rate,
            "operand": self._described(),
        }

    @property
    def digest(self) -> bytes:
        """The digest of the canonical request, 32 bytes."""
        return content_digest(canonical({**self.facts, "metadata": self.metadata}))

    def _described(self) -> Mapping[str, Any]:
        if self.factors is not None:
            a, b = self.factors.a, self.factors.b
            digest = content_digest(content_digest(lanes(a)) + content_digest(lanes(b)))
            return {"rank": self.factors.rank, "dtype": _name(a), "digest": digest.hex()}
        assert self.operand is not None
        described: dict[str, Any] = {
            "digest": content_digest(lanes(self.operand)).hex(),
            "dtype": _name(self.operand),
            "elements": self.operand.numel(),
        }
        if self.indices is not None:
            described["indices"] = content_digest(lanes(self.indices)).hex()
        return described


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
    if request.update_type not in UPDATE_TYPES:
        raise InvalidRequest(
            f"update_type must be one of {', '.join(UPDATE_TYPES)}, got {request.update_type!r}",
            param="update_type",
        )
    if spec.element.kind != "float" and request.update_type != "replace":
        raise InvalidRequest(
            f"parameter {name!r} has dtype {spec.dtype}, which takes update_type replace only",
            param="update_type",
        )
    metadata = _metadata(request.metadata)
    if request.factors is not None:
        _require_alone(request)
        factors = low_rank(request.factors, spec, rate)
        return Update(spec, rate, request.update_type, metadata, factors=factors)
    if request.indices is not None:
        where, values = at_indices(request.update_data, request.indices, spec)
        return Update(spec, rate, request.update_type, metadata, values, where)
    values = operand(request.update_data, spec)
    return Update(spec, rate, request.update_type, metadata, values)


def compute(update: Update, before: torch.Tensor) -> torch.Tensor:
    """The parameter's new value: a contiguous tensor of its shape and dtype, on its device.

    `before` is the parameter's current tensor, of any layout; it is only read. Works a tile at a
    time, so the operand is never copied whole. Raises InvalidRequest if the operand is not finite
    or does not fit the dtype, NonFiniteResult if the arithmetic overflows.
    """
    spec = update.spec
    if update.factors is not None:
        after = clone(before)
        apply_factors(after, update.factors, spec)
        _require_finite_result(after, before.reshape(spec.shape), spec)
        return after
    u = update.operand
    assert u is not None
    if update.indices is not None:
        after = clone(before)
        flat = after.view(-1)
        where = update.indices.to(flat.device)
        new = _new_values(u.to(flat.device), flat.index_select(0, where), update)
        flat.scatter_(0, where, new.expand(len(where)))
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


def _new_values(u: torch.Tensor, old: torch.Tensor, update: Update) -> torch.Tensor:
    if update.update_type == "replace":
        return _replaced(u, old, update.spec)
    return _moved(u, old, update)


def _replaced(u: torch.Tensor, old: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    if spec.element.kind in ("integer", "boolean"):
        return integers(u, spec).expand_as(old)
    require_finite(u, spec)
    new = u.to(torch_dtype(spec))
    if not finite(new) or (spec.element.kind == "float8" and _saturates(u, spec)):
        raise overflow(spec)
    return new.expand_as(old)


def _saturates(u: torch.Tensor, spec: TensorSpec) -> bool:
    """Casting to an 8-bit float clips what is too large, and e8m0 has no zero and no sign."""
    wide = u.to(torch.float64)
    if spec.dtype == "float8_e8m0fnu" and bool((wide <= 0).any()):
        return True
    return bool((wide.abs() > torch.finfo(torch_dtype(spec)).max).any())


def _moved(u: torch.Tensor, old: torch.Tensor, update: Update) -> torch.Tensor:
    spec, rate = update.spec, update.learning_rate
    compute = torch.float64 if spec.dtype == "float64" else torch.float32
    wide, before = u.to(old.device, compute), old.to(dtype=compute)
    # One multiplication and one addition, each rounded: never a fused one.
    step = torch.mul(wide, torch.scalar_tensor(rate, dtype=compute))
    if update.update_type == "additive":
        moved = torch.add(before, step)
    else:
        moved = torch.mul(before, torch.add(step, 1.0))
    new = moved.to(dtype=torch_dtype(spec))
    # No operand that is not finite leads to finite values, whatever the rate.
    if not new.numel() or not finite(new):
        require_finite(u, spec)
        if not finite(wide):
            raise overflow(spec)
        _require_finite_result(new, old, spec)
    return new


def _require_finite_result(new: torch.Tensor, old: torch.Tensor, spec: TensorSpec) -> None:
    """Values that were not finite before, such as a mask of -inf, may stay exactly as they were."""
    if finite(new):
        return
    kept = (new == old) | (torch.isnan(new) & torch.isnan(old))
    broken = ~torch.isfinite(new) & ~kept
    if bool(broken.any()):
        raise NonFiniteResult(spec.name, int(broken.sum()))


def _require_alone(request: IncrementalUpdateRequest) -> None:
    for other in ("update_data", "indices"):
        if getattr(request, other) is not None:
            raise InvalidRequest(f"factors stand in the place of {other}: send one", param=other)
    if request.update_type != "additive":
        raise InvalidRequest(
            f"factors are added: update_type must be additive, got {request.update_type!r}",
            param="update_type",
        )


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


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
