"""Bodies of the kinds that keep the list of versions."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from weightledger.ledger.events.bodies.protocol import Json, Metrics
from weightledger.ledger.events.kinds import (
    PINS,
    RETIRED,
    VERSION_CREATED,
    VERSION_PINNED,
    VERSION_RETIRED,
    VERSION_UNPINNED,
    VERSIONS,
)


@dataclass(frozen=True, slots=True)
class NamedState:
    """The state that a version names: the seq of the last state change, its node, its digest."""

    seq: int
    node: int
    state: bytes


@dataclass(frozen=True, slots=True)
class VersionCreated:
    """A state got a name."""

    description: str
    names: NamedState
    performance_metrics: Metrics = field(default_factory=dict)

    KIND: ClassVar = VERSION_CREATED
    SERIES: ClassVar[str | None] = VERSIONS
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        names = self.names
        return {
            "description": self.description,
            "names": {"seq": names.seq, "node": names.node, "state": names.state.hex()},
            "performance_metrics": dict(self.performance_metrics),
        }

    @classmethod
    def from_json(cls, value: Json) -> Self:
        names = value["names"]
        state = NamedState(names["seq"], names["node"], bytes.fromhex(names["state"]))
        return cls(value["description"], state, value["performance_metrics"])


@dataclass(frozen=True, slots=True)
class VersionRetired:
    """A version's name was taken off the list."""

    version_id: str

    KIND: ClassVar = VERSION_RETIRED
    SERIES: ClassVar[str | None] = RETIRED
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {"version_id": self.version_id}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(value["version_id"])


@dataclass(frozen=True, slots=True)
class VersionPinned:
    """A version, by its name and its number, stays on the list."""

    version_id: str
    number: int

    KIND: ClassVar = VERSION_PINNED
    SERIES: ClassVar[str | None] = PINS
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {"version_id": self.version_id, "number": self.number}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(value["version_id"], value["number"])


@dataclass(frozen=True, slots=True)
class VersionUnpinned:
    """A version may be retired again."""

    version_id: str
    number: int

    KIND: ClassVar = VERSION_UNPINNED
    SERIES: ClassVar[str | None] = PINS
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {"version_id": self.version_id, "number": self.number}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(value["version_id"], value["number"])
