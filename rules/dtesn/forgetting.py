"""Dropping what rules remember: the way out when a state does not fit its rule any more."""

from weightledger import Given, NotFound, Plan, Planner, Staged
from weightledger.rules.dtesn import state as places
from weightledger.rules.dtesn.event import event

OPERATION = "forget"


def forgetting(parameter: str, stream: str) -> Planner:
    """Removes every tensor of a parameter's stream; NotFound when there is none."""

    def plan(staged: Staged) -> Plan:
        names = places.under(staged.live.auxiliary, places.place(parameter, stream))
        if not names:
            raise NotFound(f"rules remember nothing of {parameter!r} in stream {stream!r}")
        return event(OPERATION, parameter, stream, {"stream": stream}, dropped=names, given=Given())

    return plan
