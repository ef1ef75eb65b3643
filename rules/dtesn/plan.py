"""From a request to an event: select, learn, judge, on the newest state of the model.

The handler is called by the ledger's writer, again after each lost race, so everything that
depends on the model (the weight, the rule's state, the selector's) is read in it.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from weightledger import Caller, OperationDisabled, Plan, Staged, add_command
from weightledger.rules.checking import VERSION, init
from weightledger.rules.dtesn import state as places
from weightledger.rules.dtesn.again import request_given
from weightledger.rules.dtesn.config import DTESNLearningConfig
from weightledger.rules.dtesn.described import described, digests
from weightledger.rules.dtesn.event import ANYONE, event
from weightledger.rules.dtesn.ground import Tensors, activities_of, ground_of
from weightledger.rules.dtesn.learner import Passes, Taught, follows_weight, scaling_state, teach
from weightledger.rules.dtesn.request import LearningRequest
from weightledger.rules.dtesn.verdict import judged
from weightledger.rules.errors import RuleError
from weightledger.rules.guards import Guards
from weightledger.rules.library.bcm import Bcm
from weightledger.rules.library.delta_only import BcmDelta
from weightledger.rules.library.homeostasis import SynapticScaling
from weightledger.rules.protocol import Rule
from weightledger.rules.registry import config_of, get_rule, make_rule
from weightledger.rules.selectors import NO_FEEDBACK, Choice

OPERATION = "learn"
"""What the event's body calls it; permanent."""

_SCALING = SynapticScaling.id


@dataclass(frozen=True, slots=True)
class Learn:
    """Let a rule learn what a request brings: weights and what is beside them change together.

    Without `guards` they are those that suit the rule. A retry needs the request's digest, and
    nobody else does: it is over all that was sent.
    """

    request: LearningRequest
    config: DTESNLearningConfig
    guards: Guards | None = None
    caller: Caller = ANYONE
    metadata: str | None = None

    @property
    def digest(self) -> bytes | None:
        return None if self.caller.idempotency_key is None else self.request.digest


def learn(command: Learn, staged: Staged) -> Plan:
    """The request on the newest state; RuleError for what does not fit it."""
    staged.make_room()
    request, config, guards = command.request, command.config, command.guards
    kept_whole = request_given(request, config, guards)
    prefix = places.place(request.parameter, request.stream)
    ground = ground_of(staged, request, prefix)
    choice = _choose(request, ground.held)
    rate_factor = _rate_factor(request, config, ground.held)
    rule, rate = _rule(choice, request, config, rate_factor)
    keep: dict[str, torch.Tensor] = {}
    activities = activities_of(request, ground, rule, keep)
    device = ground.weight.device
    state = places.rule_state(ground.held, rule.id, device) or init(rule, ground.weight)
    passes = _passes(request, config, rule, state, activities)
    scaling = places.rule_state(ground.held, _SCALING, device) or scaling_state(
        passes.homeostasis, ground.weight
    )
    taught = teach(rule, ground.weight, activities, state, scaling, passes)
    next_state = {f"{rule.id}.{name}": t for name, t in taught.state.items()}
    if passes.homeostasis is not None:
        next_state |= {f"{_SCALING}.{name}": t for name, t in taught.scaling.items()}
    if choice.state:
        keep[places.selector_name(request.selector)] = places.as_tensor(choice.state)
    if rate_factor is not None:
        keep[places.RATE_FACTOR] = torch.tensor(rate_factor, dtype=torch.float64)
    if guards is None:
        # A readout's step is as long as its error asks for, and from zeros there is no scale.
        guards = Guards(norm=None) if "target" in rule.activities else Guards()
    after, verdict = judged(staged, request, config, guards, ground, taught, passes, rate)
    dropped = {places.ACTIVITY + name for name in places.kept_activities(ground.held)}
    if config.keep_activities:
        kept = {places.ACTIVITY + name: tensor for name, tensor in activities.items()}
        next_state |= kept
        dropped -= kept.keys()
    remembered = {**next_state, **keep}
    facts = {
        "stream": request.stream,
        "rule": {"id": rule.id, "version": rule.version, "config": config_of(rule)},
        "selector": {
            "choice": choice.rule,
            "config": described(request.selector),
            "evidence": dict(choice.evidence),
        },
        "feedback": None if request.feedback is None else request.feedback.value,
        "activities": {
            "source": request.source,
            "kept": config.keep_activities,
            "tensors": digests(activities),
            **request.facts,
        },
        "passes": _passes_json(passes),
        "learnt": _learnt_json(taught),
        "state": {
            "in": dict(ground.before),
            "out": {name: said["digest"] for name, said in digests(remembered).items()},
        },
    }
    if rate is not None:
        facts["learning_rate"] = rate
    return event(
        OPERATION,
        request.parameter,
        request.stream,
        facts,
        remembered=remembered,
        dropped=dropped,
        weight=after,
        verdict=verdict,
        given=kept_whole,
    )


def _choose(request: LearningRequest, held: Tensors) -> Choice:
    selector = request.selector
    known = held.get(places.selector_name(selector))
    before = selector.init() if known is None else places.from_tensor(known)
    return selector.choose(request.feedback or NO_FEEDBACK, before)


def _rate_factor(
    request: LearningRequest, config: DTESNLearningConfig, held: Tensors
) -> float | None:
    """m after this call's feedback; None where nothing has moved it yet."""
    known = held.get(places.RATE_FACTOR)
    factor = None if known is None else float(known)
    if request.feedback is None:
        return factor
    before = 1.0 if factor is None else factor
    return before + config.adaptation_rate * (1 + request.feedback.value - before)


def _rule(
    choice: Choice, request: LearningRequest, config: DTESNLearningConfig, rate_factor: float | None
) -> tuple[Rule, float | None]:
    """The rule with its config, and its learning rate if it has one."""
    kind = get_rule(choice.rule)
    if not config.enable_plasticity and "target" not in kind.activities:
        raise OperationDisabled(
            f"plasticity is switched off by the configuration: {kind.id} has no target, and only "
            "readouts (lms, nlms, rls) learn"
        )
    names = kind.__dataclass_fields__
    fields: dict[str, Any] = {}
    if kind.id == BcmDelta.id:
        fields["adaptation_rate"] = config.adaptation_rate
    elif kind.id == Bcm.id and config.adaptation_rate < 1:
        # A θ slower than the rule's own would make it oscillate or diverge.
        fields["tau_theta"] = min(Bcm().tau_theta, -1 / math.log1p(-config.adaptation_rate))
    if "learning_rate" in names:
        scaled = config.learning_rate * (1.0 if rate_factor is None else rate_factor)
        fields["learning_rate"] = float(scaled if request.rate is None else request.rate)
    elif request.rate is not None:
        raise RuleError(f"{kind.id} has no learning rate: leave it out", param="learning_rate")
    rule = make_rule(kind.id, {**fields, **request.rule_config})
    return rule, config_of(rule).get("learning_rate")


def _passes(
    request: LearningRequest,
    config: DTESNLearningConfig,
    rule: Rule,
    state: Tensors,
    activities: Tensors,
) -> Passes:
    """See `DTESNLearningConfig`."""
    readout = follows_weight(rule)
    repeats = readout and state.keys() <= {VERSION} and request.gate is None
    scales = config.enable_homeostasis and "y" in rule.activities and not readout
    homeostasis = None
    if scales and activities["y"].ndim == 2 and rule.parameter != ("out",) and rule.id != _SCALING:
        homeostasis = SynapticScaling()
    return Passes(
        request.batch_size or config.batch_size,
        config.max_iterations if repeats else 1,
        config.convergence_threshold,
        homeostasis,
        request.gate,
    )


def _passes_json(passes: Passes) -> dict[str, Any]:
    return {
        "batch_size": passes.batch_size,
        "max_iterations": passes.max_iterations,
        "convergence_threshold": passes.convergence_threshold,
        "homeostasis": None if passes.homeostasis is None else config_of(passes.homeostasis),
        "gate": described(passes.gate),
    }


def _learnt_json(taught: Taught) -> dict[str, Any]:
    finite = {n: float(v) for n, v in taught.metrics.items() if math.isfinite(v)}
    return {
        "proposals": taught.proposals,
        "iterations": taught.iterations,
        "converged": taught.converged,
        "metrics": finite,
    }


add_command(Learn, learn, switch="incremental learning")
