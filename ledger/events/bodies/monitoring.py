"""Bodies of the kinds that say what was measured of an update, and by which rules."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from weightledger.ledger.events.bodies.protocol import Json
from weightledger.ledger.events.kinds import OBSERVED, POLICY_CHANGED


@dataclass(frozen=True, slots=True)
class Observed:
    """What became known of a state change after it was made.

    `of` is its seq, `verdict` one word, `policy` the name of the policy that ruled, `evidence`
    what it ruled from. `reason` says it in words.
    """

    of: int
    verdict: str
    policy: str
    reason: str | None = None
    evidence: Json = field(default_factory=dict)

    KIND: ClassVar = OBSERVED
    SERIES: ClassVar[str | None] = None
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {
            "of": self.of,
            "verdict": self.verdict,
            "policy": self.policy,
            "reason": self.reason,
            "evidence": dict(self.evidence),
        }

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(
            value["of"], value["verdict"], value["policy"], value["reason"], value["evidence"]
        )


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """Another policy rules from here on: its name, the one before, and its rules."""

    policy: str
    before: str
    rules: Json

    KIND: ClassVar = POLICY_CHANGED
    SERIES: ClassVar[str | None] = None
    SCHEMA: ClassVar = 1

    def to_json(self) -> dict[str, Any]:
        return {"policy": self.policy, "before": self.before, "rules": dict(self.rules)}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(value["policy"], value["before"], value["rules"])
