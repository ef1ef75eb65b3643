"""Requests for incremental updates, checked against the parameters of a model.

What fits becomes an `Update`; what does not is an error that names the field and what was expected.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from msgspec.structs import force_setattr
from numpy.typing import NDArray

from weightledger.ledger.codecs.factors import Factors
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.events.canonical import Plain, canonical, is_plain
from weightledger.ledger.tensors.digest import content_digest, content_digests
from weightledger.ledger.tensors.lanes import lanes, name_of, stacked
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.operands import at_indices, low_rank, operand

UPDATE_TYPES = ("additive", "multiplicative", "replace")


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


class Update(msgspec.Struct, frozen=True, eq=False):
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
    factors: Factors | None = None
    _facts: Mapping[str, Any] | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the event says about the request: its options, and the digest of what was sent."""
        return self._say(None) if self._facts is None else self._facts

    @property
    def digest(self) -> bytes:
        """The digest of the canonical request, 32 bytes."""
        return content_digest(canonical({**self.facts, "metadata": self.metadata}))

    def _say(self, digest: bytes | None) -> Mapping[str, Any]:
        """Its facts, from now on; `digest` is the operand's, where it is known."""
        rate = self.learning_rate  # of all that is said it alone may be written in two ways
        facts = (Plain if is_plain(rate) else dict)(
            parameter=self.spec.name,
            operation=self.update_type,
            learning_rate=rate,
            operand=self._described(digest),
        )
        force_setattr(self, "_facts", facts)
        return facts

    def _described(self, digest: bytes | None) -> Plain:
        if self.factors is not None:
            a, b = self.factors.a, self.factors.b
            both = content_digest(content_digest(lanes(a)) + content_digest(lanes(b)))
            return Plain(rank=self.factors.rank, dtype=name_of(a.dtype), digest=both.hex())
        assert self.operand is not None
        described = Plain(
            digest=(digest or content_digest(lanes(self.operand))).hex(),
            dtype=name_of(self.operand.dtype),
            elements=self.operand.numel(),
        )
        if self.indices is not None:
            described["indices"] = content_digest(lanes(self.indices)).hex()
        return described


def facts_of(updates: Sequence[Update]) -> list[Mapping[str, Any]]:
    """The facts of each; digests of many operands together take a third of the time."""
    asked = [one for one in updates if one._facts is None and one.operand is not None]
    contents = _bytes_of([one.operand for one in asked if one.operand is not None])
    for one, digest in zip(asked, content_digests(contents), strict=True):
        one._say(digest)
    return [one.facts for one in updates]


def _bytes_of(operands: Sequence[torch.Tensor]) -> Iterable[memoryview]:
    rows = stacked(operands)
    if rows is None:
        return map(_plain_bytes, map(lanes, operands))
    size, everything = rows[0].nbytes, _plain_bytes(rows.numpy())
    return (everything[at : at + size] for at in range(0, len(everything), size))


def _plain_bytes(values: NDArray[Any]) -> memoryview:
    return values.data.cast("B") if values.size else memoryview(b"")


def validate(
    request: IncrementalUpdateRequest,
    specs: Mapping[str, TensorSpec],
    row: torch.Tensor | None = None,
) -> Update:
    """Check a request against the parameters of a model, by bare name.

    `row` is what `operands.flattened` has of its values. Raises NotFound for an unknown parameter
    and InvalidRequest, which names the field and what was expected, for everything else.
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
    metadata = metadata_text(request.metadata)
    if request.factors is not None:
        _require_alone(request)
        factors = low_rank(request.factors, spec, rate)
        return Update(spec, rate, request.update_type, metadata, factors=factors)
    if request.indices is not None:
        where, values = at_indices(request.update_data, request.indices, spec)
        return Update(spec, rate, request.update_type, metadata, values, where)
    values = operand(request.update_data, spec, row)
    return Update(spec, rate, request.update_type, metadata, values)


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
    if type(value) is float and 0 <= value <= 1:
        return value
    numbers = (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, numbers) or not 0 <= value <= 1:
        raise InvalidRequest(
            f"learning_rate must be a number in [0, 1], got {value!r:.50}", param="learning_rate"
        )
    return float(value)


def metadata_text(value: Mapping[str, Any] | None) -> str | None:
    """Metadata as canonical JSON; InvalidRequest for anything but a JSON object."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidRequest("metadata must be a JSON object", param="metadata")
    return canonical(dict(value), param="metadata").decode()
