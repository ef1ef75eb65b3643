"""Dropping what rules remember: the way out when a state does not fit its rule any more."""

from weightledger import NotFound, Plan, Planner, Staged
from weightledger.rules.dtesn import state as places

OPERATION = "forget"


def forgetting(parameter: str, stream: str) -> Planner:
    """Removes every tensor of a parameter's stream; NotFound when there is none."""

    def plan(staged: Staged) -> Plan:
        prefix = places.place(parameter, stream)
        names = places.under(staged.live.auxiliary, prefix)
        if not names:
            raise NotFound(f"rules remember nothing of {parameter!r} in stream {stream!r}")
        facts = {"operation": OPERATION, "parameter": parameter, "stream": stream}
        return Plan(facts, {}, places.removed(prefix, names))

    return plan
