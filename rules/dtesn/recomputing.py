"""Computing recorded steps again: what a rule proposed then is what it proposes now.

Needs the activities, so events that did not keep them (`keep_activities`) are checked by their
digests only, and counted as such.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from weightledger import Event, Log, Pruned, tensor_digest
from weightledger.rules.checking import init, moved
from weightledger.rules.dtesn import history
from weightledger.rules.dtesn import state as places
from weightledger.rules.dtesn.ground import computing_dtype
from weightledger.rules.dtesn.learner import Passes, scaling_state, teach
from weightledger.rules.errors import RuleError
from weightledger.rules.library.homeostasis import SynapticScaling
from weightledger.rules.registry import make_rule

# Another number of threads or another processor sums in another order.
_ROUNDING = 1e-4


@dataclass(slots=True)
class Recomputed:
    """Counts of events: `exact` to the last bit, `close` within rounding.

    Of `state_only` the rules' states were compared, to the last bit or within rounding, and not the
    weight: a guard changed the step with tensors and bounds of its own. `without_activities` could
    not be run again, `pruned` have a state that gc dropped. `problems` name the rest, by update id.
    """

    exact: int = 0
    close: int = 0
    state_only: int = 0
    without_activities: int = 0
    pruned: int = 0
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems


def recompute(log: Log) -> Recomputed:
    """Run the rule of every applied step again on the state before it, and compare."""
    found = Recomputed()
    for event in reversed(history.learnt(log)):
        if event.kind != "updated":
            continue
        if not event.body["activities"]["kept"]:
            found.without_activities += 1
            continue
        try:
            compared = _compare(log, event)
        except Pruned:
            found.pruned += 1
            continue
        except (RuleError, LookupError, ValueError) as error:
            found.problems[event.name] = str(error)
            continue
        found.exact += compared == "exact"
        found.close += compared == "close"
        found.state_only += compared == "state_only"
    return found


def _compare(log: Log, event: Event) -> Literal["exact", "close", "state_only"]:
    """How the step compares with what was recorded; ValueError when it is another step."""
    body = event.body
    before, after = log.state(f"seq:{event.seq - 1}"), log.state(f"seq:{event.seq}")
    prefix = places.place(body["parameter"], body["stream"])
    stored = before[body["parameter"]]
    weight = stored.to(computing_dtype(body["parameter"], stored.dtype))
    rule = make_rule(body["rule"]["id"], body["rule"]["config"])
    if rule.version != body["rule"]["version"]:
        raise ValueError(
            f"{rule.id} is at version {rule.version}, the event was made by version "
            f"{body['rule']['version']}"
        )
    passes = _passes(body["passes"])
    held = places.under(before, prefix)
    device = weight.device
    activities = places.kept_activities(places.under(after, prefix))
    for name, said in body["activities"]["tensors"].items():
        if tensor_digest(activities[name]).hex() != said["digest"]:
            raise ValueError(f"activity {name!r} is not the one whose digest the event has")
    taught = teach(
        rule,
        weight,
        activities,
        places.rule_state(held, rule.id, device) or init(rule, weight),
        places.rule_state(held, SynapticScaling.id, device)
        or scaling_state(passes.homeostasis, weight),
        passes,
    )
    recorded_state = places.under(after, prefix)
    exact = _same_state(rule.id, taught.state, recorded_state)
    if passes.homeostasis is not None:
        exact &= _same_state(SynapticScaling.id, taught.scaling, recorded_state)
    guards = body["evidence"]["guards"]
    scale = guards.get("norm", {}).get("scaled_by", 1.0)
    if guards.get("ewc") or guards.get("bounds", {}).get("outside"):
        return "state_only"
    again = moved(weight, taught.delta * scale).to(stored.dtype)
    recorded = after[body["parameter"]]
    if torch.equal(again, recorded):
        return "exact" if exact else "close"
    length = _norm(recorded.double() - stored.double())
    off = _norm(again.double() - recorded.double())
    if not off <= _ROUNDING * length:
        raise ValueError(f"the step is another: off by {off:.3g} of {length:.3g}")
    return "close"


def _same_state(
    rule_id: str, state: Mapping[str, torch.Tensor], held: Mapping[str, torch.Tensor]
) -> bool:
    same = True
    for name, tensor in state.items():
        recorded = held[f"{rule_id}.{name}"]
        if torch.equal(recorded, tensor):
            continue
        same = False
        if not torch.allclose(recorded, tensor, rtol=_ROUNDING, atol=1e-8):
            raise ValueError(f"the rule's state {name!r} is another")
    return same


def _passes(said: Mapping[str, Any]) -> Passes:
    """A gate only looks: what is learnt is the same without it."""
    scaling = said["homeostasis"]
    return Passes(
        said["batch_size"],
        said["max_iterations"],
        said["convergence_threshold"],
        None if scaling is None else SynapticScaling(**scaling),
    )


def _norm(tensor: torch.Tensor) -> float:
    length = float(torch.linalg.vector_norm(tensor))
    return length if math.isfinite(length) else math.inf
