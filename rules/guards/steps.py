"""Guards that look at the step itself: finite, norm, consolidation, bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from weightledger.rules.checking import is_finite, propose
from weightledger.rules.guards.finding import Finding, json_number
from weightledger.rules.library.ewc import Ewc
from weightledger.rules.protocol import Proposal
from weightledger.rules.ranges import check_choice, check_ranges


@dataclass(frozen=True, slots=True)
class Finite:
    """Refuses a delta, or a state to be kept, with NaN or infinities."""

    def __call__(self, weight: torch.Tensor, proposal: Proposal) -> Finding:
        """See the class."""
        bad = [] if is_finite(proposal.delta) else ["delta"]
        bad += [
            name
            for name, tensor in proposal.state.items()
            if tensor.is_floating_point() and not is_finite(tensor)
        ]
        reason = f"not finite: {', '.join(bad)}" if bad else None
        return Finding(proposal.delta, {"not_finite": bad}, reason)


@dataclass(frozen=True, slots=True)
class NormLimit:
    """Holds ‖Δ‖ ≤ κ‖W‖ (Frobenius), refusing a longer step or scaling it to the limit.

    A weight of zeros has no scale to compare with: `floor` stands for ‖W‖ where that is smaller.
    """

    kappa: float = 0.1
    floor: float = 1e-3
    on_excess: Literal["refuse", "scale"] = "refuse"

    def __post_init__(self) -> None:
        check_ranges(self, positive=["kappa"], not_negative=["floor"])
        check_choice("on_excess", self.on_excess, ("refuse", "scale"))

    def __call__(self, weight: torch.Tensor, proposal: Proposal) -> Finding:
        """See the class."""
        delta = proposal.delta
        length, size = _norm(delta), _norm(weight)
        limit = self.kappa * max(size, self.floor)
        evidence = {"delta_norm": length, "weight_norm": size, "limit": limit}
        if length <= limit:
            return Finding(delta, evidence)
        if self.on_excess == "scale":
            factor = limit / length
            return Finding(delta * factor, {**evidence, "scaled_by": factor})
        reason = f"‖Δ‖ = {length:.6g} exceeds {self.kappa:g}·‖W‖ = {limit:.6g}"
        return Finding(delta, evidence, reason)


@dataclass(frozen=True, slots=True)
class Consolidation:
    """Pulls the step to what earlier tasks need: the proximal step of `rules.library.ewc.Ewc`.

    `state` is the Ewc rule's, made by `rules.init` and `Ewc.consolidate`. With `max_penalty`,
    refuses a step after which (λ/2) Σ F (W − W*)² is larger.
    """

    rule: Ewc
    state: Mapping[str, torch.Tensor]
    max_penalty: float | None = None

    def __call__(self, weight: torch.Tensor, proposal: Proposal) -> Finding:
        """See the class."""
        delta = propose(self.rule, weight, {"delta": proposal.delta}, self.state).delta
        away = (weight.detach() + delta).sub_(self.state["anchor"]).square_()
        penalty = 0.5 * self.rule.strength * float(away.mul_(self.state["fisher"]).sum())
        evidence = {
            "proposed_norm": _norm(proposal.delta),
            "delta_norm": _norm(delta),
            "penalty": json_number(penalty),
        }
        if self.max_penalty is not None and not penalty <= self.max_penalty:
            reason = f"EWC penalty {penalty:.6g} exceeds {self.max_penalty:g}"
            return Finding(delta, evidence, reason)
        return Finding(delta, evidence)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Holds every weight that the step changes within [w_min, w_max], by clipping or refusing."""

    w_min: float = -10.0
    w_max: float = 10.0
    on_excess: Literal["refuse", "clip"] = "clip"

    def __post_init__(self) -> None:
        check_ranges(self)
        check_choice("on_excess", self.on_excess, ("refuse", "clip"))

    def __call__(self, weight: torch.Tensor, proposal: Proposal) -> Finding:
        """See the class."""
        before, delta = weight.detach(), proposal.delta
        after = before + delta
        outside = ((after < self.w_min) | (after > self.w_max)).logical_and_(delta != 0)
        count = int(outside.sum())
        if not count:
            return Finding(delta, {"outside": 0})
        if self.on_excess == "refuse":
            reason = f"{count} weights would leave [{self.w_min:g}, {self.w_max:g}]"
            return Finding(delta, {"outside": count}, reason)
        within = after.clamp_(self.w_min, self.w_max).sub_(before)
        return Finding(torch.where(outside, within, delta), {"outside": count})


def _norm(tensor: torch.Tensor) -> float:
    """The Frobenius norm, summed in float64: no finite float32 tensor overflows it."""
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
