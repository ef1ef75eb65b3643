"""The body of the kind that moves a fleet, replica by replica, to another state."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from weightledger.ledger.events.bodies.protocol import Json
from weightledger.ledger.events.kinds import ROLLOUT_CHANGED, ROLLOUTS


@dataclass(frozen=True, slots=True)
class RolloutChanged:
    """A rollout was started, advanced, finished or aborted, and is as it says from here on.

    `rollout` is the seq of the event that started it, None in that event. `percent` of the replicas
    show the state of node `to`, the others that of `base`; None is whatever the head is. `reason`
    and `evidence` are a policy's, where it was one that asked.
    """

    action: str
    rollout: int | None
    percent: int
    to: int | None
    base: int | None
    reason: str | None = None
    evidence: Json = field(default_factory=dict)

    KIND: ClassVar = ROLLOUT_CHANGED
    SERIES: ClassVar[str | None] = ROLLOUTS
    SCHEMA: ClassVar = 2

    @property
    def written_as(self) -> int:
        """The first schema knows no policy's reason: a person asked, or a program."""
        return 1 if self.reason is None and not self.evidence else 2

    def to_json(self) -> dict[str, Any]:
        why = {"reason": self.reason, "evidence": dict(self.evidence)}
        return {
            **(why if self.written_as > 1 else {}),
            "action": self.action,
            "rollout": self.rollout,
            "percent": self.percent,
            "to": self.to,
            "base": self.base,
        }

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(
            value["action"],
            value["rollout"],
            value["percent"],
            value["to"],
            value["base"],
            value.get("reason"),
            value.get("evidence", {}),
        )
