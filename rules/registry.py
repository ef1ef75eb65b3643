"""Which rules there are: one table of ours, and those that installed packages bring."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import torch

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
    """The ids of all rules, ours first."""
    return list(_installed())


def get_rule(rule_id: str) -> type[Rule]:
    """The rule with this id, ours or an installed package's; raises UnknownRule."""
    rule = RULES.get(rule_id) or _installed().get(rule_id)
    if rule is None:
        raise UnknownRule(
            f"there is no rule {rule_id!r}; known are {', '.join(_installed())}", param="rule"
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
    """What there is to know about the rule with this id; raises UnknownRule."""
    rule = get_rule(rule_id)
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
def _installed() -> dict[str, type[Rule]]:
    others = [point.load() for point in entry_points(group=ENTRY_POINTS)]
    return table([*RULES.values(), *others])
