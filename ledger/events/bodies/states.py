"""Bodies of the kinds that move a model from state to state, or were to."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import msgspec

from weightledger.ledger.events.bodies.operands import Operands
from weightledger.ledger.events.bodies.protocol import (
    Json,
    Metrics,
    changes_in,
    changes_json,
    without,
)
from weightledger.ledger.events.bodies.shards import Shards, shards_of
from weightledger.ledger.events.changes import TensorChange
from weightledger.ledger.events.kinds import (
    REGISTERED,
    ROLLED_BACK,
    UPDATE_REJECTED,
    UPDATED,
    UPDATES,
)
from weightledger.ledger.tensors.spec import WEIGHTS


@dataclass(frozen=True, slots=True)
class Registered:
    """A model was registered with so many tensors, of so many bytes."""

    tensors_total: int
    size_bytes: int

    KIND: ClassVar = REGISTERED
    SERIES: ClassVar[str | None] = None
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {"tensors_total": self.tensors_total, "bytes": self.size_bytes}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(value["tensors_total"], value["bytes"])


class Updated(msgspec.Struct, frozen=True):
    """Parameters were changed.

    `facts` are whoever's who made the update: "operation", what it was computed from, the rule.
    `delta_norm` is the L2 norm of all differences, None where it is not a finite number. `counted`
    are the full state names that it counts as an update of, where `facts` do not tell them.
    `operands` says where what it was worked out from is, None in events of before. `shards` says
    that several ranks wrote the payload, None where one process did.
    """

    facts: Json
    tensors: tuple[TensorChange, ...]
    delta_norm: float | None
    pre_metrics: Metrics = msgspec.field(default_factory=dict)
    post_metrics: Metrics = msgspec.field(default_factory=dict)
    evidence: Json = msgspec.field(default_factory=dict)
    counted: tuple[str, ...] | None = None
    operands: Operands | None = None
    shards: Shards | None = None

    KIND: ClassVar = UPDATED
    SERIES: ClassVar[str | None] = UPDATES
    SCHEMA: ClassVar = 3

    @property
    def written_as(self) -> int:
        """The first schema says nothing of operands: none were kept; the second nothing of ranks:
        one process wrote it."""
        if self.shards is not None:
            return 3
        return 1 if self.operands is None else 2

    def to_json(self) -> dict[str, Any]:
        return {
            **self.facts,
            "tensors": changes_json(self.tensors),
            "delta_norm": self.delta_norm,
            "pre_metrics": dict(self.pre_metrics),
            "post_metrics": dict(self.post_metrics),
            **({"evidence": dict(self.evidence)} if self.evidence else {}),
            **({} if self.counted is None else {"counted": list(self.counted)}),
            **({} if self.operands is None else {"operands": self.operands.to_json()}),
            **({} if self.shards is None else {"shards": self.shards.to_json()}),
        }

    @classmethod
    def from_json(cls, value: Json) -> Self:
        own = (
            *("tensors", "delta_norm", "pre_metrics", "post_metrics", "evidence"),
            *("counted", "operands", "shards"),
        )
        return cls(
            without(value, own),
            changes_in(value),
            value["delta_norm"],
            value["pre_metrics"],
            value["post_metrics"],
            value.get("evidence", {}),
            tuple(value["counted"]) if "counted" in value else None,
            Operands.from_json(value["operands"]) if "operands" in value else None,
            shards_of(value),
        )


class UpdateRejected(msgspec.Struct, frozen=True):
    """An update was refused for a reason, and why; `facts` as for Updated."""

    facts: Json
    reason: str
    pre_metrics: Metrics = msgspec.field(default_factory=dict)
    post_metrics: Metrics = msgspec.field(default_factory=dict)
    evidence: Json = msgspec.field(default_factory=dict)

    KIND: ClassVar = UPDATE_REJECTED
    SERIES: ClassVar[str | None] = UPDATES
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {
            **self.facts,
            "reason": self.reason,
            "evidence": dict(self.evidence),
            "pre_metrics": dict(self.pre_metrics),
            "post_metrics": dict(self.post_metrics),
        }

    @classmethod
    def from_json(cls, value: Json) -> Self:
        own = ("reason", "evidence", "pre_metrics", "post_metrics")
        return cls(
            without(value, own),
            value["reason"],
            value["pre_metrics"],
            value["post_metrics"],
            value["evidence"],
        )


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The model went to another state.

    `to` is the position as it was asked for, `to_event` the event it named, `to_seq` the node it
    stands for, `from_seq` the last state change before. `reason` says why where nobody asked, and
    `evidence` what a policy ruled from.
    """

    to: str
    to_event: int
    to_seq: int
    from_seq: int
    version_id: str | None
    cause: str
    reason: str | None = None
    evidence: Json = field(default_factory=dict)

    KIND: ClassVar = ROLLED_BACK
    SERIES: ClassVar[str | None] = None
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {
            "to": self.to,
            "to_event": self.to_event,
            "to_seq": self.to_seq,
            "from_seq": self.from_seq,
            "version_id": self.version_id,
            "cause": self.cause,
            **({} if self.reason is None else {"reason": self.reason}),
            **({"evidence": dict(self.evidence)} if self.evidence else {}),
        }

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(
            value["to"],
            value["to_event"],
            value["to_seq"],
            value["from_seq"],
            value["version_id"],
            value["cause"],
            value.get("reason"),
            value.get("evidence", {}),
        )


def counted_parameters(facts: Json) -> list[str]:
    """The full state names that an update with these facts counts for, each once.

    They are those that it names, whether or not a bit of them changed; an update that names none
    counts for the weights that it changed.
    """
    if "counted" in facts:
        return list(dict.fromkeys(facts["counted"]))
    named = [one["parameter"] for one in facts.get("updates", [facts]) if "parameter" in one]
    if named:
        return list(dict.fromkeys(WEIGHTS + name for name in named))
    changed = (one["name"] for one in facts.get("tensors", ()))
    return list(dict.fromkeys(name for name in changed if name.startswith(WEIGHTS)))
