"""What every write to a log meets, whichever face it comes by.

A log is opened with its policy, so no caller can leave it out: a program that holds the log, REST
and a learning rule are judged by the same guard and stopped by the same switches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from weightledger.ledger.adapters import LoRAConfig
from weightledger.ledger.config import MAX_PREPARE_S, DynamicUpdateConfig
from weightledger.ledger.errors import InvalidRequest, OperationDisabled
from weightledger.ledger.projection.change import Change

Switch = Literal["incremental learning", "versioning"]
"""What an operator can switch off."""

KeepOperands = Literal["small", "all", "none"]
"""Which operands events keep: small ones (and those of rules), all of them, or none."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found about a candidate: measurements before and after, and why it is refused.

    `reason` None accepts. `evidence` is JSON that goes into the event. `evaluated` says whether
    the candidate was scored: an event that comes without says so.
    """

    pre_metrics: Mapping[str, float] = field(default_factory=dict)
    post_metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    evaluated: bool = False

    def joined(self, other: "Verdict") -> "Verdict":
        """Both together; the first reason stands."""
        if self is UNJUDGED:
            return other
        return Verdict(
            {**self.pre_metrics, **other.pre_metrics},
            {**self.post_metrics, **other.post_metrics},
            self.reason or other.reason,
            {**self.evidence, **other.evidence},
            self.evaluated or other.evaluated,
        )

    def with_evidence(self, facts: Mapping[str, Any]) -> "Verdict":
        """This one, with more facts for the event."""
        evidence = {**self.evidence, **facts}
        return Verdict(self.pre_metrics, self.post_metrics, self.reason, evidence, self.evaluated)


UNJUDGED = Verdict()
"""Nothing was found, and nothing speaks against it."""


class ChangeGuard(Protocol):
    """Judges changes of weights, which are not visible yet, before their event is appended."""

    @property
    def alone(self) -> bool:
        """Whether it looks at the candidate module or the live state.

        Then every change waits until the one before it is appended; else several can be judged
        before the first of them is.
        """

    def current(self) -> Mapping[str, float]:
        """What is known of the live state; what was not measured is absent."""

    def __call__(self, change: Change) -> Verdict:
        """The verdict on `change`; with `alone` the candidate module has been built."""


@dataclass(frozen=True, slots=True)
class Preparing:
    """Which replicas have to build an update's state before it is recorded, and how soon.

    `of` is "all" that serve, or "canary": `percent` of them, at least one, always the same.
    Raises InvalidRequest for what is out of range.
    """

    of: Literal["canary", "all"]
    percent: int = 10
    timeout_s: float = 15.0

    def __post_init__(self) -> None:
        if self.of not in ("canary", "all"):
            raise InvalidRequest(
                f"prepare must be none, canary or all, got {self.of!r}", param="prepare"
            )
        if not 1 <= self.percent <= 100:
            raise InvalidRequest(
                f"prepare_percent must be from 1 to 100, got {self.percent}",
                param="prepare_percent",
            )
        if not 0 < self.timeout_s <= MAX_PREPARE_S:
            raise InvalidRequest(
                f"prepare_timeout_s must be above 0 and at most {MAX_PREPARE_S:g},"
                f" got {self.timeout_s}",
                param="prepare_timeout_s",
            )


def preparing_of(config: DynamicUpdateConfig) -> Preparing | None:
    """What a configuration has replicas prepare; None for nothing."""
    if config.prepare == "none":
        return None
    return Preparing(config.prepare, config.prepare_percent, config.prepare_timeout_s)


@dataclass(frozen=True, slots=True)
class Policy:
    """The guard of weights, the limits of adapters, switches, and which operands are kept.

    With `two_person` what one person writes waits until another approves it. With `prepare` an
    update is recorded only once replicas have built its state. With `read_only` nothing is written
    here, and that is why.
    """

    guard: ChangeGuard | None = None
    adapters: LoRAConfig | None = None
    updates: bool = True
    versions: bool = True
    operands: KeepOperands = "small"
    two_person: bool = False
    prepare: Preparing | None = None
    read_only: str | None = None

    @property
    def alone(self) -> bool:
        """Whether changes of weights have to be appended one by one."""
        judged = self.guard is not None and self.guard.alone
        return judged or self.prepare is not None

    def require(self, switch: Switch | None) -> None:
        """Raise OperationDisabled where this is switched off."""
        if self.read_only is not None:
            raise OperationDisabled(self.read_only)
        on = {"incremental learning": self.updates, "versioning": self.versions, None: True}
        if not on[switch]:
            raise OperationDisabled(f"{switch} is switched off by the configuration")


ANYTHING_GOES = Policy()
