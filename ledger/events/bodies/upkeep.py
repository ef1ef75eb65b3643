"""Bodies of the kinds that look after what is stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from weightledger.ledger.events.bodies.protocol import Json
from weightledger.ledger.events.kinds import (
    PRUNED,
    PRUNINGS,
    REDACTED,
    REDACTIONS,
    REPAIRED,
    SIGNING_KEY_ROTATED,
)


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


@dataclass(frozen=True, slots=True)
class Repair:
    """What is kept beside the log was derived from it anew.

    `rows` counts, for each derived table, the rows that were wrong, missing or too many;
    `snapshots` are the nodes of those that were written anew. The indexes were all rebuilt.
    """

    rows: Mapping[str, int]
    snapshots: tuple[int, ...] = ()

    KIND: ClassVar = REPAIRED
    SERIES: ClassVar[str | None] = None
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {"rows": dict(self.rows), "snapshots": list(self.snapshots)}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(value["rows"], tuple(value["snapshots"]))


@dataclass(frozen=True, slots=True)
class Redaction:
    """Texts beside earlier events were taken away: `texts` of actor, reason and metadata, of the
    events with these seqs, as far as they had them."""

    events: tuple[int, ...]
    texts: tuple[str, ...]

    KIND: ClassVar = REDACTED
    SERIES: ClassVar[str | None] = REDACTIONS
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {"events": list(self.events), "texts": list(self.texts)}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(tuple(value["events"]), tuple(value["texts"]))


@dataclass(frozen=True, slots=True)
class KeyRotation:
    """From the next checkpoint on another key signs; both are 32 bytes of Ed25519.

    `old` is None where that key was lost: then it has not vouched for this one.
    """

    old: bytes | None
    new: bytes

    KIND: ClassVar = SIGNING_KEY_ROTATED
    SERIES: ClassVar[str | None] = None
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {"old": self.old.hex() if self.old is not None else None, "new": self.new.hex()}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        old = value["old"]
        return cls(None if old is None else bytes.fromhex(old), bytes.fromhex(value["new"]))
