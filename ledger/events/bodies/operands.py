"""What became of an update's operands: the tensors and facts that it was worked out from.

Replay never reads them. They are kept so that an update can be worked out again on another state,
and an event says whether its own are, and where.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import msgspec

from weightledger.ledger.events.canonical import Plain
from weightledger.ledger.events.kinds import IN_BLOBS, IN_PAYLOAD
from weightledger.ledger.tensors.spec import DTYPES, TensorSpec

# Why operands are not there; permanent words.
OUTSIDE = "outside"  # the values came ready from elsewhere: there is nothing to work out again
TOO_LARGE = "too_large"
SWITCHED_OFF = "switched_off"


@dataclass(frozen=True, slots=True)
class KeptTensor:
    """One operand: its name, and what it is; `digest` is that of its blob, where it has one."""

    spec: TensorSpec
    digest: bytes | None = None

    @property
    def nbytes(self) -> int:
        return prod(self.spec.shape) * self.spec.element.itemsize

    def to_json(self) -> Plain:
        spec = self.spec
        named = Plain(name=spec.name, dtype=spec.dtype, shape=list(spec.shape))
        if self.digest is not None:
            named["digest"] = self.digest.hex()
        return named

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        if value["dtype"] not in DTYPES:
            raise ValueError(f"dtype {value['dtype']!r} is not known")
        spec = TensorSpec(value["name"], value["dtype"], tuple(value["shape"]))
        digest = value.get("digest")
        return cls(spec, None if digest is None else bytes.fromhex(digest))


class Operands(msgspec.Struct, frozen=True):
    """Where an event's operands are: `where` is "payload" (behind the changes, in this order),
    "blobs" (each by its digest), or None, and then `why` says why they are not kept.

    `asked` are facts of the request that no other field of the event has, as JSON.
    """

    where: str | None
    tensors: tuple[KeptTensor, ...] = ()
    asked: Mapping[str, Any] = msgspec.field(default_factory=dict)
    why: str | None = None

    @property
    def payload_bytes(self) -> int:
        """How much of the event's payload they are, at its end."""
        return sum(one.nbytes for one in self.tensors) if self.where == IN_PAYLOAD else 0

    def to_json(self) -> dict[str, Any]:
        if self.where is None:
            return {"where": None, "why": self.why}
        tensors = [one.to_json() for one in self.tensors]
        if self.asked:
            return {"where": self.where, "tensors": tensors, "asked": dict(self.asked)}
        return Plain(where=self.where, tensors=tensors)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        where = value["where"]
        if where not in (IN_PAYLOAD, IN_BLOBS, None):
            raise ValueError(f"operands are kept in a place that is not known: {where!r}")
        tensors = tuple(KeptTensor.from_json(one) for one in value.get("tensors", ()))
        return cls(where, tensors, value.get("asked", {}), value.get("why"))


def payload_bytes_of(body: Mapping[str, Any]) -> int:
    """How many bytes at the end of an event's payload are operands; 0 in events of old schemas.

    Of every event that is replayed, so it makes no more of them than their size.
    """
    said = body.get("operands")
    if said is None or said["where"] != IN_PAYLOAD:
        return 0
    size = 0
    for one in said.get("tensors", ()):
        element = DTYPES.get(one["dtype"])
        if element is None:
            raise ValueError(f"dtype {one['dtype']!r} is not known")
        size += prod(one["shape"]) * element.itemsize
    return size
