"""Guards that look at what the model answers: the trust region, the shadow score."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from weightledger import sign_test
from weightledger.rules.checking import is_finite
from weightledger.rules.errors import RuleError
from weightledger.rules.guards.finding import Finding, json_number
from weightledger.rules.protocol import Proposal
from weightledger.rules.ranges import check_choice, check_ranges

Scores = Callable[[torch.Tensor], torch.Tensor]
"""A score of each item of a fixed set, [items], higher is better, with the weight given."""

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Class scores [anchors, classes] of a fixed anchor set, with the weight given."""


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
        evidence = {"kl": json_number(kl), "limit": self.max_kl, "anchors": len(before)}
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
