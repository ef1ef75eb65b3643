"""Commands of approvals: writes that wait for somebody else's word, see `commands`."""

from dataclasses import dataclass, field

from weightledger.ledger.writing.caller import ANYONE, Caller
from weightledger.ledger.writing.commands import Command, command_digest


@dataclass(frozen=True, slots=True)
class RequestApproval:
    """Let a write wait until somebody else approves it; asked for again it is the same request."""

    command: Command

    @property
    def caller(self) -> Caller:
        return self.command.caller

    @property
    def metadata(self) -> str | None:
        return self.command.metadata

    @property
    def digest(self) -> bytes | None:
        return self.command.digest


@dataclass(frozen=True, slots=True)
class Decide:
    """Approve a write that waits, or reject it; by somebody else than asked for it."""

    approval_id: str
    approved: bool
    caller: Caller = ANYONE
    metadata: str | None = field(default=None, init=False)

    @property
    def digest(self) -> bytes:
        asked = {"approval_id": self.approval_id, "approved": self.approved}
        return command_digest("decide", asked)


@dataclass(frozen=True, slots=True)
class CarryOut:
    """A write that was approved: it does not wait again."""

    command: Command
    caller: Caller = field(default=ANYONE, init=False)
    metadata: str | None = field(default=None, init=False)
    digest: bytes | None = field(default=None, init=False)


@dataclass(frozen=True, slots=True)
class Lapse:
    """Say that a write that was approved cannot be carried out any more."""

    approval_id: str
    cause: str
    caller: Caller = ANYONE
    metadata: str | None = field(default=None, init=False)
    digest: bytes | None = field(default=None, init=False)
