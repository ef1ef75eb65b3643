"""Bodies of the kinds that keep states under legal hold."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from weightledger.ledger.events.bodies.protocol import Json
from weightledger.ledger.events.kinds import HOLD_PLACED, HOLD_RELEASED, HOLDS, RELEASES


@dataclass(frozen=True, slots=True)
class HoldPlaced:
    """A version, by its name and number, is kept until this hold is released: the state that it
    names, by its node and digest."""

    version_id: str
    number: int
    node: int
    state: bytes

    KIND: ClassVar = HOLD_PLACED
    SERIES: ClassVar[str | None] = HOLDS
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {
            "version_id": self.version_id,
            "number": self.number,
            "node": self.node,
            "state": self.state.hex(),
        }

    @classmethod
    def from_json(cls, value: Json) -> Self:
        state = bytes.fromhex(value["state"])
        return cls(value["version_id"], value["number"], value["node"], state)


@dataclass(frozen=True, slots=True)
class HoldReleased:
    """A hold was released. Its number is that of the hold."""

    version_id: str

    KIND: ClassVar = HOLD_RELEASED
    SERIES: ClassVar[str | None] = RELEASES
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {"version_id": self.version_id}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(value["version_id"])
