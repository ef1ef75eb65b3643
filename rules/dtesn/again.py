"""What was learnt, learnt again: all that its request said is kept with its event, and read back.

A causal what-if works updates out on another state; this says of those made by rules what they
were given, and makes the same command of it.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from weightledger import Given, Kept, derives
from weightledger.rules.dtesn.config import DTESNLearningConfig
from weightledger.rules.dtesn.described import described
from weightledger.rules.dtesn.gate import PairedGate
from weightledger.rules.dtesn.readout import driven_by
from weightledger.rules.dtesn.request import LearningRequest
from weightledger.rules.errors import RuleError
from weightledger.rules.guards import Guards
from weightledger.rules.selectors import (
    DiscountedUcb,
    Feedback,
    FeedbackThresholds,
    Fixed,
    Selector,
)

if TYPE_CHECKING:
    from weightledger.rules.dtesn.consolidation import Consolidate, UpdateFisher
    from weightledger.rules.dtesn.forgetting import Forget
    from weightledger.rules.dtesn.plan import Learn

T = TypeVar("T")

_ACTIVITY, _INPUTS = "activity/", "inputs"
_SELECTORS: dict[str, type[Selector]] = {
    kind.__name__: kind for kind in (Fixed, FeedbackThresholds, DiscountedUcb)
}


def request_given(
    request: LearningRequest, config: DTESNLearningConfig, guards: Guards | None
) -> Given | None:
    """All that a request says; None where part of it is code of the caller's own."""
    if type(request.selector).__name__ not in _SELECTORS or guards is not None:
        return None
    tensors = {_ACTIVITY + name: tensor for name, tensor in request.activities.items()}
    if request.readout is not None:
        tensors[_INPUTS] = request.readout.inputs
    asked = {
        "source": request.source,
        "selector": described(request.selector),
        "rule_config": dict(request.rule_config),
        "rate": request.rate,
        "feedback": described(request.feedback),
        "gate": described(request.gate),
        "batch_size": request.batch_size,
        "facts": dict(request.facts),
        "config": asdict(config),
    }
    return Given(tensors, asked, always=True)


@derives("learn")
def _learn(kept: Kept) -> "Learn":
    from weightledger.rules.dtesn.plan import Learn  # which keeps by `request_given`

    asked = kept.asked
    config = _made(DTESNLearningConfig, asked["config"])
    inputs = kept.tensors.get(_INPUTS)
    request = LearningRequest(
        parameter=kept.facts["parameter"],
        activities={
            name.removeprefix(_ACTIVITY): tensor
            for name, tensor in kept.tensors.items()
            if name.startswith(_ACTIVITY)
        },
        source=asked["source"],
        selector=_made(_SELECTORS[asked["selector"]["kind"]], asked["selector"]),
        rule_config=asked["rule_config"],
        rate=None if asked["rate"] is None else float(asked["rate"]),
        stream=kept.facts["stream"],
        feedback=None if asked["feedback"] is None else _made(Feedback, asked["feedback"]),
        gate=None if asked["gate"] is None else _made(PairedGate, asked["gate"]),
        batch_size=asked["batch_size"],
        readout=None if inputs is None else driven_by(inputs, config),
        facts=asked["facts"],
    )
    return Learn(request, config)


@derives("forget")
def _forget(kept: Kept) -> "Forget":
    from weightledger.rules.dtesn.forgetting import Forget

    return Forget(kept.facts["parameter"], kept.facts["stream"])


@derives("fisher")
def _fisher(kept: Kept) -> "UpdateFisher":
    from weightledger.rules.dtesn.consolidation import UpdateFisher

    current, gradient = kept.tensors.get("current"), kept.tensors["gradient"]
    strength, decay = float(kept.asked["strength"]), float(kept.asked["fisher_decay"])
    return UpdateFisher(kept.facts["parameter"], current, gradient, strength, decay)


@derives("consolidate")
def _consolidate(kept: Kept) -> "Consolidate":
    from weightledger.rules.dtesn.consolidation import Consolidate

    current, fisher = kept.tensors.get("current"), kept.tensors.get("fisher")
    return Consolidate(kept.facts["parameter"], current, fisher)


def tensors_given(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Those that there are."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _made(kind: type[T], said: Mapping[str, Any]) -> T:
    """A dataclass of what `described` or `asdict` said of it; numbers of JSON are floats again."""
    defaults = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in said.items():
        if name == "kind":
            continue
        if name not in defaults:
            raise RuleError(f"{kind.__name__} has no {name!r} in this release")
        declared = str(defaults[name].type)
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, int) and not isinstance(value, bool) and "float" in declared:
            value = float(value)
        values[name] = value
    return kind(**values)
