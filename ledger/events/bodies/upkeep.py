"""Bodies of the kinds that look after what is stored."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from weightledger.ledger.events.bodies.protocol import Json
from weightledger.ledger.events.kinds import PRUNED, PRUNINGS


@dataclass(frozen=True, slots=True)
class Pruning:
    """What gc dropped: ascending, disjoint ranges of seqs whose payloads went, and snapshots.

    `retained` counts states that stay restorable, `pruned` the events in the ranges.
    """

    ranges: tuple[tuple[int, int], ...]
    snapshots: tuple[int, ...]
    retained: int
    pruned: int

    KIND: ClassVar = PRUNED
    SERIES: ClassVar[str | None] = PRUNINGS
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {
            "ranges": [list(ends) for ends in self.ranges],
            "snapshots": list(self.snapshots),
            "retained": self.retained,
            "pruned": self.pruned,
        }

    @classmethod
    def from_json(cls, value: Json) -> Self:
        ranges = tuple((first, last) for first, last in value["ranges"])
        return cls(ranges, tuple(value["snapshots"]), value["retained"], value["pruned"])
