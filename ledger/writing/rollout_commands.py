"""Commands of rollouts: how many of the replicas show what, see `commands`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.writing.caller import ANYONE, Caller
from weightledger.ledger.writing.commands import command_digest


@dataclass(frozen=True, slots=True)
class StartRollout:
    """Have `percent` of the replicas show the state at a position while the others follow the head.

    With "head" those follow the head, and the others stay at the state that is live now.
    """

    to: str
    percent: int
    caller: Caller = ANYONE
    metadata: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_percent(self.percent)

    @property
    def digest(self) -> bytes:
        return command_digest("start_rollout", {"to": self.to, "percent": self.percent})


@dataclass(frozen=True, slots=True)
class AdvanceRollout:
    """Have more of the replicas show what is rolled out, or fewer; `rollout` None is what runs."""

    percent: int
    rollout: str | None = None
    caller: Caller = ANYONE
    metadata: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_percent(self.percent)

    @property
    def digest(self) -> bytes:
        asked = {"rollout": self.rollout, "percent": self.percent}
        return command_digest("advance_rollout", asked)


@dataclass(frozen=True, slots=True)
class EndRollout:
    """Have every replica show the head again; `status` is "finished" or "aborted".

    The head is then what was rolled out, or what the others were held at: where it is another
    state, the model is rolled back to that, in the same transaction. `cause` is another than
    "manual" where a policy asks; `why` and `evidence` are its reason and evidence.
    """

    status: str
    rollout: str | None = None
    caller: Caller = ANYONE
    cause: str = "manual"
    why: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    metadata: str | None = field(default=None, init=False)

    @property
    def digest(self) -> bytes:
        return command_digest("end_rollout", {"rollout": self.rollout, "status": self.status})


def check_percent(percent: int) -> None:
    """Raise InvalidRequest unless it is a whole number from 0 to 100."""
    if not isinstance(percent, int) or not 0 <= percent <= 100:
        raise InvalidRequest(f"percent must be from 0 to 100, got {percent!r}", param="percent")
