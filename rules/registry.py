"""Which rules there are: one table of ours, and those that installed packages bring.

A package's rule is loaded when its id is asked for, the name of its entry point, so one that is
broken is in nobody's way until then. No package can take the id of one of ours.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch

from weightledger import PluginError, load_plugin, plugin_ids
from weightledger.rules.errors import RuleError, UnknownRule
from weightledger.rules.library.bcm import Bcm
from weightledger.rules.library.delta_only import (
    BcmDelta,
    HebbianDelta,
    ReinforcementDelta,
    StdpDelta,
)
from weightledger.rules.library.ewc import Ewc
from weightledger.rules.library.hebbian import Hebb, Oja, Sanger
from weightledger.rules.library.homeostasis import IntrinsicPlasticity, SynapticScaling
from weightledger.rules.library.lms import Lms, Nlms
from weightledger.rules.library.reinforcement import NodePerturbation, Reinforce
from weightledger.rules.library.rewarded_stdp import Mstdpet, RStdp
from weightledger.rules.library.rls import Rls
from weightledger.rules.library.stdp import PairStdp, TripletStdp
from weightledger.rules.protocol import ANY_SHAPE, Activity, Rule, Shape
from weightledger.rules.ranges import of_type

ENTRY_POINTS = "weightledger.rules"


def table(rules: Iterable[type[Rule]]) -> dict[str, type[Rule]]:
    """Rules by id; raises ValueError for an id that is malformed or taken twice."""
    found: dict[str, type[Rule]] = {}
    for rule in rules:
        if not (rule.id.isascii() and rule.id.isprintable() and 0 < len(rule.id) < 256):
            raise ValueError(f"rule id {rule.id!r} is not 1 to 255 printable ASCII characters")
        if set(rule.id) & {".", "/"}:  # they part a state's name from its rule's id
            raise ValueError(f"rule id {rule.id!r} has a dot or a slash")
        if rule.id in found:
            raise ValueError(f"two rules have the id {rule.id!r}")
        found[rule.id] = rule
    return found


RULES: dict[str, type[Rule]] = table(
    (
        Hebb,
        Oja,
        Sanger,
        PairStdp,
        TripletStdp,
        Bcm,
        RStdp,
        Mstdpet,
        Reinforce,
        NodePerturbation,
        SynapticScaling,
        IntrinsicPlasticity,
        Lms,
        Nlms,
        Rls,
        Ewc,
        HebbianDelta,
        StdpDelta,
        BcmDelta,
        ReinforcementDelta,
    )
)
"""The rules that come with the ledger."""


@dataclass(frozen=True, slots=True)
class Description:
    """What there is to know about a rule before using it.

    `config` maps each field to its default, `state` each tensor's name to its shape, "[]" being
    a single number.
    """

    id: str
    version: int
    summary: str
    parameter: str
    config: Mapping[str, Any]
    activities: Mapping[str, str]
    state: Mapping[str, str]
    documentation: str


def rule_ids() -> list[str]:
    """The ids of all rules, ours first; nobody's code is loaded."""
    return [*RULES, *(rule_id for rule_id in plugin_ids(ENTRY_POINTS) if rule_id not in RULES)]


def get_rule(rule_id: str) -> type[Rule]:
    """The rule with this id, ours or an installed package's.

    Raises UnknownRule if there is none, PluginError if the package's cannot be used.
    """
    rule = RULES.get(rule_id) or _installed(rule_id)
    if rule is None:
        raise UnknownRule(
            f"there is no rule {rule_id!r}; known are {', '.join(rule_ids())}", param="rule"
        )
    return rule


def make_rule(rule_id: str, config: Mapping[str, Any] | None = None) -> Rule:
    """A rule with the given fields of its config, the others at their defaults.

    Raises UnknownRule for an id there is none of, RuleError for a field there is none of and for a
    value that is not of the field's type or range.
    """
    rule = get_rule(rule_id)
    defaults = config_of(rule())
    fields_given = {}
    for name, value in (config or {}).items():
        if name not in defaults:
            raise RuleError(
                f"{rule_id} has no field {name!r}; it has {', '.join(defaults)}", param=name
            )
        fields_given[name] = of_type(name, value, defaults[name])
    return rule(**fields_given)


def config_of(rule: Rule) -> dict[str, Any]:
    """The rule's fields and their values, as an event records them."""
    return {field.name: getattr(rule, field.name) for field in fields(rule)}


def describe(rule_id: str) -> Description:
    """What there is to know about the rule with this id; raises what `get_rule` raises."""
    return _described(get_rule(rule_id))


def _described(rule: type[Rule]) -> Description:
    return Description(
        id=rule.id,
        version=rule.version,
        summary=rule.summary,
        parameter=shape_text(rule.parameter),
        config=config_of(rule()),
        activities={name: _activity_text(a) for name, a in rule.activities.items()},
        state=_state_shapes(rule()),
        documentation=rule.__doc__ or "",
    )


def shape_text(shape: Shape) -> str:
    """A shape for people: "[batch, out]"; "[]" is a number, any shape is the parameter's."""
    return "[the parameter's]" if shape == ANY_SHAPE else f"[{', '.join(map(str, shape))}]"


def _activity_text(activity: Activity) -> str:
    return f"{shape_text(activity.shape)} {activity.meaning}"


def _state_shapes(rule: Rule) -> dict[str, str]:
    """Names and shapes of the state, seen by making one for a parameter of telling sizes."""
    names: Shape = ("out", "in") if rule.parameter == ANY_SHAPE else rule.parameter
    sizes = {17 + number: str(name) for number, name in enumerate(names)}
    state = rule.init(torch.empty(tuple(sizes), device="meta"))
    return {
        name: f"[{', '.join(sizes.get(size, str(size)) for size in tensor.shape)}]"
        for name, tensor in state.items()
    }


@cache
def _installed(rule_id: str) -> type[Rule] | None:
    """A package's rule; None where none brings this id. What was loaded once stays."""
    rule: type[Rule] | None = load_plugin(ENTRY_POINTS, rule_id)
    if rule is None:
        return None
    try:
        described = _described(table((rule,))[rule.id])
    except Exception as error:
        raise PluginError(
            f"the entry point of rule {rule_id!r} brings {rule!r:.80}, which does not keep the "
            f"contract of weightledger.rules.protocol: {error!r}"
        ) from error
    if described.id != rule_id:
        raise PluginError(
            f"the entry point of rule {rule_id!r} brings the rule {described.id!r}: an entry "
            "point's name is the id of its rule"
        )
    return rule
