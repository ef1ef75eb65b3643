"""From a lesson to an event: select, teach, judge, on the newest state of the model.

The planner is called by the ledger's writer, again after each lost race, so everything that
depends on the model (the weight, the rule's state, the selector's) is read in it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ledger import OperationDisabled, Plan, Planner, Tip, Verdict, Write
from rules.checking import DTYPES, init, is_finite
from rules.dtesn import state as places
from rules.dtesn.config import DTESNLearningConfig
from rules.dtesn.lesson import Lesson, described, digests
from rules.dtesn.teaching import Passes, Taught, follows_weight, scaling_state, teach
from rules.errors import RuleError
from rules.ewc import Ewc
from rules.guards import Consolidation, Guards, judge
from rules.homeostasis import SynapticScaling
from rules.protocol import Proposal, Rule
from rules.registry import config_of, get_rule, make_rule
from rules.selectors import Choice, Feedback, Fixed

OPERATION = "learn"
"""What the event's body calls it; permanent."""

NO_FEEDBACK = Feedback(0.0)
_SCALING = SynapticScaling.id

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Ground:
    """What a lesson meets: the weight in the dtype rules compute in, and the stream's tensors.

    `before` are the digests of those; `bias` is the layer's, if it has one.
    """

    weight: torch.Tensor
    stored: torch.dtype
    held: Tensors
    before: Mapping[str, str]
    bias: torch.Tensor | None


def planner(lesson: Lesson, config: DTESNLearningConfig, guards: Guards | None) -> Planner:
    """Works the lesson out on the newest state; RuleError for what does not fit it."""

    def plan(tip: Tip) -> Plan:
        return _plan(tip, lesson, config, guards)

    return plan


def computing_dtype(parameter: str, dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for float32 and half types; RuleError for all others."""
    if dtype in DTYPES:
        return dtype
    if dtype in (torch.float16, torch.bfloat16):
        return torch.float32
    name = str(dtype).removeprefix("torch.")
    raise RuleError(
        f"parameter {parameter!r} is {name}: rules learn floats", param="parameter_name"
    )


def _plan(tip: Tip, lesson: Lesson, config: DTESNLearningConfig, guards: Guards | None) -> Plan:
    prefix = places.place(lesson.parameter, lesson.stream)
    ground = _ground(tip, lesson, prefix)
    choice = _choose(lesson, ground.held)
    rate_factor = _rate_factor(lesson, config, ground.held)
    rule, rate = _rule(choice, lesson, config, rate_factor)
    keep: dict[str, torch.Tensor] = {}
    activities = _activities(lesson, ground, rule, keep)
    passes = _passes(lesson, config, rule, activities)
    device = ground.weight.device
    state = places.rule_state(ground.held, rule.id, device) or init(rule, ground.weight)
    scaling = places.rule_state(ground.held, _SCALING, device) or scaling_state(
        passes.homeostasis, ground.weight
    )
    taught = teach(rule, ground.weight, activities, state, scaling, passes)
    next_state = {f"{rule.id}.{name}": t for name, t in taught.state.items()}
    if passes.homeostasis is not None:
        next_state |= {f"{_SCALING}.{name}": t for name, t in taught.scaling.items()}
    if choice.state:
        keep[places.selector_name(lesson.selector)] = places.as_tensor(choice.state)
    if rate_factor is not None:
        keep[places.RATE_FACTOR] = torch.tensor(rate_factor, dtype=torch.float64)
    if guards is None:
        # A readout's step is as long as its error asks for, and from zeros there is no scale.
        guards = Guards(norm=None) if "target" in rule.activities else Guards()
    after, verdict = _judged(tip, lesson, config, guards, ground, taught, passes, rate)
    seen = digests(activities)
    side: dict[str, torch.Tensor | None] = {}
    gone = {places.ACTIVITY + name for name in places.kept_activities(ground.held)}
    if config.keep_activities:
        kept = {places.ACTIVITY + name: tensor for name, tensor in activities.items()}
        next_state |= kept
        gone -= kept.keys()
    side |= places.removed(prefix, gone)
    side |= places.named(prefix, {**next_state, **keep})
    facts = {
        "operation": OPERATION,
        "parameter": lesson.parameter,
        "stream": lesson.stream,
        "rule": {"id": rule.id, "version": rule.version, "config": config_of(rule)},
        "selector": {
            "choice": choice.rule,
            "config": described(lesson.selector),
            "evidence": dict(choice.evidence),
        },
        "feedback": None if lesson.feedback is None else lesson.feedback.value,
        "activities": {
            "source": lesson.source,
            "kept": config.keep_activities,
            "tensors": seen,
            **lesson.facts,
        },
        "passes": _passes_json(passes),
        "learnt": _learnt_json(taught),
        "state": {
            "in": dict(ground.before),
            "out": {name: said["digest"] for name, said in digests({**next_state, **keep}).items()},
        },
    }
    if rate is not None:
        facts["learning_rate"] = rate
    return Plan(facts, {lesson.parameter: Write(after)}, side, verdict=verdict)


def _ground(tip: Tip, lesson: Lesson, prefix: str) -> _Ground:
    live = tip.weight(lesson.parameter).detach()
    weight = live.to(computing_dtype(lesson.parameter, live.dtype))
    state = tip.live.state.digests
    before = {n[len(prefix) :]: d.hex() for n, d in state.items() if n.startswith(prefix)}
    held = places.under(tip.live.side, prefix)
    return _Ground(weight, live.dtype, held, before, _bias(tip, lesson.parameter, weight))


def _bias(tip: Tip, parameter: str, weight: torch.Tensor) -> torch.Tensor | None:
    """The bias beside a weight, as `torch.nn.Linear` names it."""
    layer, _, name = parameter.rpartition(".")
    bias = f"{layer}.bias" if layer else "bias"
    if name != "weight" or bias not in tip.specs or tip.specs[bias].shape != weight.shape[:1]:
        return None
    return tip.weight(bias).detach().to(weight.dtype)


def _choose(lesson: Lesson, held: Tensors) -> Choice:
    selector = lesson.selector
    known = held.get(places.selector_name(selector))
    before = selector.init() if known is None else places.from_tensor(known)
    return selector.choose(lesson.feedback or NO_FEEDBACK, before)


def _rate_factor(lesson: Lesson, config: DTESNLearningConfig, held: Tensors) -> float | None:
    """m after this call's feedback; None where nothing has moved it yet."""
    known = held.get(places.RATE_FACTOR)
    factor = None if known is None else float(known)
    if lesson.feedback is None:
        return factor
    before = 1.0 if factor is None else factor
    return before + config.adaptation_rate * (1 + lesson.feedback.value - before)


def _rule(
    choice: Choice, lesson: Lesson, config: DTESNLearningConfig, rate_factor: float | None
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
    a = config.adaptation_rate
    if kind.id == "bcm-delta":
        fields["adaptation_rate"] = a
    elif kind.id == "bcm" and a < 1:
        fields["tau_theta"] = -1 / math.log1p(-a)
    if "learning_rate" in names:
        own = (
            lesson.rate if lesson.rate is not None else config.learning_rate * (rate_factor or 1.0)
        )
        fields["learning_rate"] = float(own)
    elif lesson.rate is not None:
        raise RuleError(f"{kind.id} has no learning rate: leave it out", param="learning_rate")
    rule = make_rule(kind.id, {**fields, **lesson.rule_config})
    return rule, config_of(rule).get("learning_rate")


def _activities(
    lesson: Lesson, ground: _Ground, rule: Rule, keep: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What the rule wants (and what a gate scores with), in the weight's dtype and place."""
    given = dict(lesson.activities)
    if lesson.derive is not None:
        derived = lesson.derive(ground.held, ground.weight)
        given |= derived.activities
        keep |= derived.keep
    if lesson.source == "request":
        given["delta"] = _like(given["delta"], ground.weight)
        if "reward" in rule.activities:
            given["reward"] = torch.tensor((lesson.feedback or NO_FEEDBACK).value)
    scored = {"x", "y", "target"} if lesson.gate is not None else set()
    wanted = rule.activities.keys() | scored
    if not isinstance(lesson.selector, Fixed):  # a selector's rules may want different activities
        given = {name: tensor for name, tensor in given.items() if name in wanted}
    made = {name: t.to(ground.weight.device, ground.weight.dtype) for name, t in given.items()}
    if "y" in wanted and "y" not in made and "x" in made and "target" in wanted:
        made["y"] = _outputs(made["x"], ground)
    if missing := [name for name in rule.activities if name not in made]:
        raise RuleError(
            f"{rule.id} needs the activities {', '.join(rule.activities)}; "
            f"missing: {', '.join(missing)}",
            param=missing[0],
        )
    if unknown := [name for name in made if name not in wanted]:
        raise RuleError(
            f"{rule.id} takes the activities {', '.join(rule.activities)}, "
            f"not {', '.join(unknown)}",
            param=unknown[0],
        )
    return made


def _outputs(x: torch.Tensor, ground: _Ground) -> torch.Tensor:
    """x Wᵀ + b, what a linear layer answers."""
    weight = ground.weight
    if weight.ndim != 2 or x.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise RuleError(
            f"y cannot be worked out: x is [batch, in] for a parameter [out, in] of shape "
            f"{tuple(weight.shape)}, got {tuple(x.shape)}",
            param="x",
        )
    answer = x @ weight.mT
    return answer if ground.bias is None else answer + ground.bias


def _like(data: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A change in the parameter's shape; flat and single numbers are taken as updates take them."""
    if data.shape == weight.shape:
        return data
    if data.ndim == 0:
        return data.expand(weight.shape)
    if data.ndim == 1 and data.numel() == weight.numel():
        return data.reshape(weight.shape)
    raise RuleError(
        f"update_data has the parameter's shape {tuple(weight.shape)}, {weight.numel()} values or "
        f"one number, got shape {tuple(data.shape)}",
        param="update_data",
    )


def _passes(lesson: Lesson, config: DTESNLearningConfig, rule: Rule, activities: Tensors) -> Passes:
    scales = config.enable_homeostasis and "y" in rule.activities and not follows_weight(rule)
    homeostasis = None
    if scales and activities["y"].ndim == 2 and rule.parameter != ("out",):
        homeostasis = SynapticScaling(rate_step=config.adaptation_rate)
    if rule.id == _SCALING:
        homeostasis = None
    return Passes(
        lesson.batch_size or config.batch_size,
        config.max_iterations,
        config.convergence_threshold,
        homeostasis,
        lesson.gate,
    )


def _judged(
    tip: Tip,
    lesson: Lesson,
    config: DTESNLearningConfig,
    guards: Guards,
    ground: _Ground,
    taught: Taught,
    passes: Passes,
    rate: float | None,
) -> tuple[torch.Tensor, Verdict]:
    """The weight's new value, and what the guards say of it."""
    if guards.ewc is None:
        guards = replace(guards, ewc=_consolidation(tip, lesson, config, ground, rate))
    state = {**taught.state, **{f"{_SCALING}.{n}": t for n, t in taught.scaling.items()}}
    judgement = judge(guards, ground.weight, Proposal(taught.delta, state, taught.metrics))
    evidence: dict[str, Any] = {"guards": dict(judgement.evidence)}
    reason, by = judgement.reason, judgement.refused_by
    if passes.gate is not None and taught.tally is not None:
        evidence["gate"] = taught.tally.evidence()
        if reason is None and (reason := taught.tally.refusal(passes.gate)) is not None:
            by = "gate"
    after = (ground.weight + judgement.delta).to(ground.stored)
    if reason is None and not is_finite(after):
        reason, by = (
            f"the result does not fit {str(ground.stored).removeprefix('torch.')}",
            "result",
        )
    if reason is not None:
        evidence["refused_by"] = by
        return after, Verdict(reason=f"Automatic rollback: {by}: {reason}", evidence=evidence)
    return after, Verdict(evidence=evidence)


def _consolidation(
    tip: Tip,
    lesson: Lesson,
    config: DTESNLearningConfig,
    ground: _Ground,
    rate: float | None,
) -> Consolidation | None:
    """EWC, once something of this parameter was consolidated."""
    prefix = places.place(lesson.parameter, places.CONSOLIDATION)
    held = places.under(tip.live.side, prefix)
    if not held:
        return None
    eta = config.learning_rate if rate is None else rate
    rule = Ewc(eta, config.ewc_lambda, config.fisher_decay)
    return Consolidation(rule, {n: t.to(ground.weight.device) for n, t in held.items()})


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
