"""What stands between a proposal and the model: six guards, in one fixed order.

finite → norm → EWC → bounds → trust region → shadow score. A guard is a frozen dataclass, its
config, and a pure function from the live weight and a proposal to a finding: the delta to go on
with (possibly shortened), what was measured, and the reason if it refuses. `judge` runs those
that are configured; the first refusal ends it, and all evidence so far is kept. Evidence is plain
JSON without NaN or infinity, so that an event can record it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

import torch

from weightledger.rules.checking import is_finite, propose
from weightledger.rules.errors import RuleError
from weightledger.rules.library.ewc import Ewc
from weightledger.rules.protocol import Proposal
from weightledger.rules.ranges import check_bounds, check_choice, check_ranges

Scores = Callable[[torch.Tensor], torch.Tensor]
"""A score of each item of a fixed set, [items], higher is better, with the weight given."""

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Class scores [anchors, classes] of a fixed anchor set, with the weight given."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one guard says. `delta` is what to go on with; `reason` None accepts."""

    delta: torch.Tensor
    evidence: Mapping[str, Any]
    reason: str | None = None


class Guard(Protocol):
    """Judges one step of one parameter; writes to nothing."""

    def __call__(self, weight: torch.Tensor, proposal: Proposal) -> Finding:
        """The finding for `proposal`, whose delta may have been changed by the guards before."""


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
            "penalty": _json(penalty),
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
        check_bounds(self.w_min, self.w_max)
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


@dataclass(frozen=True, slots=True)
class TrustRegion:
    """Refuses a step that moves the predictions on an anchor set too far.

    The measure is the mean of KL(π_before ‖ π_after) over the anchors, in nats; `logits` computes
    the anchors' class scores with the weight it is given. Schulman et al., ICML 2015.
    """

    logits: Logits
    max_kl: float = 0.01

    def __post_init__(self) -> None:
        check_ranges(self, positive=["max_kl"])

    def __call__(self, weight: torch.Tensor, proposal: Proposal) -> Finding:
        """See the class."""
        with torch.no_grad():
            before = self._log_probabilities(weight.detach())
            after = self._log_probabilities(weight.detach() + proposal.delta)
            kl = float((before.exp() * (before - after)).sum(-1).mean())
        evidence = {"kl": _json(kl), "limit": self.max_kl, "anchors": len(before)}
        # Written so that NaN is refused.
        if kl <= self.max_kl:
            return Finding(proposal.delta, evidence)
        return Finding(
            proposal.delta, evidence, f"KL {kl:.6g} nats on anchors exceeds {self.max_kl:g}"
        )

    def _log_probabilities(self, weight: torch.Tensor) -> torch.Tensor:
        scores = self.logits(weight)
        if scores.ndim != 2 or not len(scores):
            raise RuleError(f"logits are [anchors, classes], got {tuple(scores.shape)}")
        return torch.log_softmax(scores.double(), dim=-1)


@dataclass(frozen=True, slots=True)
class ShadowScore:
    """Scores the candidate beside the live weight on the same items, and asks for evidence.

    `scores` gives one score for each item. The paired sign test counts items that got better and
    worse, ties aside; its one-sided p is exact (binomial with one half). `require`:
    "not worse" refuses when the mean fell by more than `max_drop` and "worse" is significant at
    `alpha`; "better" refuses unless the mean rose and "better" is significant. The strict form is
    what makes unsupervised rules on a trained layer harmless.
    """

    scores: Scores
    require: Literal["not worse", "better"] = "not worse"
    alpha: float = 0.05
    max_drop: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, fraction=["alpha"], not_negative=["max_drop"])
        check_choice("require", self.require, ("not worse", "better"))

    def __call__(self, weight: torch.Tensor, proposal: Proposal) -> Finding:
        """See the class."""
        with torch.no_grad():
            before = self.scores(weight.detach()).double()
            after = self.scores(weight.detach() + proposal.delta).double()
        if before.ndim != 1 or before.shape != after.shape or not len(before):
            raise RuleError(
                f"scores are [items], alike before and after, got {tuple(before.shape)} and "
                f"{tuple(after.shape)}"
            )
        if not (is_finite(before) and is_finite(after)):
            bad = {"items": len(before), "not_finite": True}
            return Finding(proposal.delta, bad, "the shadow scores are not finite")
        better, worse = int((after > before).sum()), int((after < before).sum())
        rise = float((after - before).mean())
        evidence: dict[str, Any] = {
            "items": len(before),
            "score_before": float(before.mean()),
            "score_after": float(after.mean()),
            "better": better,
            "worse": worse,
            "p_better": sign_test(better, worse),
            "p_worse": sign_test(worse, better),
        }
        if self.require == "better":
            refused = not (rise > 0 and evidence["p_better"] <= self.alpha)
        else:
            refused = rise < -self.max_drop and evidence["p_worse"] <= self.alpha
        reason = None
        if refused:
            reason = (
                f"shadow score went from {evidence['score_before']:.6g} to "
                f"{evidence['score_after']:.6g} ({better} items better, {worse} worse), "
                f"required: {self.require} at {self.alpha:g}"
            )
        return Finding(proposal.delta, evidence, reason)


@dataclass(frozen=True, slots=True)
class Guards:
    """The guards to run, in the order of the fields; None leaves one out."""

    finite: Guard | None = field(default_factory=Finite)
    norm: Guard | None = field(default_factory=NormLimit)
    ewc: Guard | None = None
    bounds: Guard | None = None
    trust_region: Guard | None = None
    shadow: Guard | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """The delta to apply unless `reason` refuses, and what each guard that ran found, by name.

    `refused_by` names the guard that refused.
    """

    delta: torch.Tensor
    evidence: Mapping[str, Mapping[str, Any]]
    reason: str | None = None
    refused_by: str | None = None


def judge(guards: Guards, weight: torch.Tensor, proposal: Proposal) -> Judgement:
    """Run the guards over a proposal; the first refusal stops."""
    evidence: dict[str, Mapping[str, Any]] = {}
    delta = proposal.delta
    for name in (place.name for place in fields(guards)):
        guard: Guard | None = getattr(guards, name)
        if guard is None:
            continue
        finding = guard(weight, Proposal(delta, proposal.state, proposal.metrics))
        evidence[name] = finding.evidence
        if finding.reason is not None:
            return Judgement(delta, evidence, finding.reason, name)
        delta = finding.delta
    return Judgement(delta, evidence)


def sign_test(successes: int, failures: int) -> float:
    """P(at least `successes` of as many fair coin tosses as both together), exact."""
    tosses = successes + failures
    return sum(math.comb(tosses, k) for k in range(successes, tosses + 1)) / (1 << tosses)


def _norm(tensor: torch.Tensor) -> float:
    """The Frobenius norm, summed in float64: no finite float32 tensor overflows it."""
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
