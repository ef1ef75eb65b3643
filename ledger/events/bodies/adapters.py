"""Bodies of the kinds that put adapters into the state and take them out of it."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from weightledger.ledger.events.bodies.protocol import Json, changes_in, changes_json, without
from weightledger.ledger.events.changes import TensorChange
from weightledger.ledger.events.kinds import ADAPTER_LOADED, ADAPTER_UNLOADED


@dataclass(frozen=True, slots=True)
class AdapterLoaded:
    """An adapter entered the state, or took the place of the one of its name.

    `facts` has the "operation" and what the loader says of the adapter.
    """

    facts: Json
    tensors: tuple[TensorChange, ...]

    KIND: ClassVar = ADAPTER_LOADED
    SERIES: ClassVar[str | None] = None
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {**self.facts, "tensors": changes_json(self.tensors)}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(without(value, ("tensors",)), changes_in(value))


@dataclass(frozen=True, slots=True)
class AdapterUnloaded:
    """An adapter left the state; `facts` as for AdapterLoaded."""

    facts: Json
    tensors: tuple[TensorChange, ...]

    KIND: ClassVar = ADAPTER_UNLOADED
    SERIES: ClassVar[str | None] = None
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {**self.facts, "tensors": changes_json(self.tensors)}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(without(value, ("tensors",)), changes_in(value))
