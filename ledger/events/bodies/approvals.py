"""Bodies of the kinds that keep the two-person rule."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from weightledger.ledger.events.bodies.protocol import Json
from weightledger.ledger.events.kinds import (
    APPROVAL_DECIDED,
    APPROVAL_LAPSED,
    APPROVAL_REQUESTED,
    APPROVALS,
    DECISIONS,
    LAPSES,
)


@dataclass(frozen=True, slots=True)
class ApprovalRequested:
    """A write waits for a second person: `request` is the command as data, its tensors are the
    event's payload; `expected_seq` is the last state change that it was asked for on, if any."""

    request: Json
    expected_seq: int | None = None

    KIND: ClassVar = APPROVAL_REQUESTED
    SERIES: ClassVar[str | None] = APPROVALS
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {"request": dict(self.request), "expected_seq": self.expected_seq}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(value["request"], value["expected_seq"])


@dataclass(frozen=True, slots=True)
class ApprovalDecided:
    """Somebody else approved a write that waited, or rejected it. Its number is the request's."""

    approved: bool

    KIND: ClassVar = APPROVAL_DECIDED
    SERIES: ClassVar[str | None] = DECISIONS
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {"approved": self.approved}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(value["approved"])


@dataclass(frozen=True, slots=True)
class ApprovalLapsed:
    """A write that was approved could not be carried out any more, and will not be."""

    cause: str

    KIND: ClassVar = APPROVAL_LAPSED
    SERIES: ClassVar[str | None] = LAPSES
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {"cause": self.cause}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(value["cause"])
