"""What every body has, and what several of them are made of."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

from weightledger.ledger.events.canonical import Plain
from weightledger.ledger.events.changes import TensorChange

Json = Mapping[str, Any]
Metrics = Mapping[str, float]


class EventBody(Protocol):
    """What every body has; `KIND` is permanent, `SCHEMA` the newest that there is."""

    KIND: ClassVar[str]
    SERIES: ClassVar[str | None]
    SCHEMA: ClassVar[int]

    def to_json(self) -> dict[str, Any]:
        """The facts as the header holds them, by the newest schema."""

    @classmethod
    def from_json(cls, value: Json) -> Self:
        """The body of any schema so far; raises KeyError, TypeError or ValueError for none."""


def schema_of(body: EventBody) -> int:
    """The schema that a header names: the newest, or an older one that says all of it."""
    written: int = getattr(body, "written_as", body.SCHEMA)
    return written


def changes_in(value: Json) -> tuple[TensorChange, ...]:
    """The changes that a body lists."""
    return tuple(TensorChange.from_json(item) for item in value["tensors"])


def changes_json(tensors: tuple[TensorChange, ...]) -> list[Plain]:
    """Changes as a body lists them."""
    return [change.to_json() for change in tensors]


def without(value: Json, names: tuple[str, ...]) -> Json:
    """The facts that have none of these names."""
    return {name: fact for name, fact in value.items() if name not in names}
