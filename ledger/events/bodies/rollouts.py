"""The body of the kind that moves a fleet, replica by replica, to another state."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from weightledger.ledger.events.bodies.protocol import Json
from weightledger.ledger.events.kinds import ROLLOUT_CHANGED, ROLLOUTS


@dataclass(frozen=True, slots=True)
class RolloutChanged:
    """A rollout was started, advanced, finished or aborted, and is as it says from here on.

    `rollout` is the seq of the event that started it, None in that event. `percent` of the replicas
    show the state of node `to`, the others that of `base`; None is whatever the head is.
    """

    action: str
    rollout: int | None
    percent: int
    to: int | None
    base: int | None

    KIND: ClassVar = ROLLOUT_CHANGED
    SERIES: ClassVar[str | None] = ROLLOUTS
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {
            "action": self.action,
            "rollout": self.rollout,
            "percent": self.percent,
            "to": self.to,
            "base": self.base,
        }

    @classmethod
    def from_json(cls, value: Json) -> Self:
        names = ("action", "rollout", "percent", "to", "base")
        return cls(*(value[name] for name in names))
