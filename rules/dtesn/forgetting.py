"""Dropping what rules remember: the way out when a state does not fit its rule any more."""

from dataclasses import dataclass, field

from weightledger import Caller, Given, NotFound, Plan, Staged, add_command, command_digest
from weightledger.rules.dtesn import state as places
from weightledger.rules.dtesn.event import ANYONE, event

OPERATION = "forget"


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove every tensor of a parameter's stream; weights stay."""

    parameter: str
    stream: str
    caller: Caller = ANYONE
    metadata: str | None = field(default=None, init=False)

    @property
    def digest(self) -> bytes:
        return command_digest(OPERATION, {"parameter": self.parameter, "stream": self.stream})


def forget(command: Forget, staged: Staged) -> Plan:
    """Every tensor that the stream has now goes; NotFound when there is none."""
    parameter, stream = command.parameter, command.stream
    names = places.under(staged.live.auxiliary, places.place(parameter, stream))
    if not names:
        raise NotFound(f"rules remember nothing of {parameter!r} in stream {stream!r}")
    return event(OPERATION, parameter, stream, {"stream": stream}, dropped=names, given=Given())


add_command(Forget, forget, switch="incremental learning")
