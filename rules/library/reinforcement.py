"""Learning from a number that says how well it went: REINFORCE and node perturbation.

Noise comes from the caller, as an activity: `perturbation` draws it from a seed, so that a
recorded step can be computed again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from weightledger.rules.protocol import MATRIX, Activity, Proposal, Shape
from weightledger.rules.ranges import check_rule, number


@dataclass(frozen=True, slots=True)
class Reinforce:
    """ΔW = η ⟨(r − r̄) ∇_W log π⟩ with ∇_W log π = ((a − μ)/σ²) xᵀ, the mean over the batch.

    For units whose net input is W x that gradient is exact for three policies: a softmax (μ the
    probabilities, a one-hot, σ² = 1), Bernoulli-logistic units (μ the probabilities, a in {0, 1},
    σ² = 1) and Gaussian units (μ = W x, a the sample, σ² its `variance`).

    State: `baseline` r̄, a number starting at 0, used before it moves:
    r̄ ← r̄ + `baseline_rate` (⟨r⟩ − r̄).

    Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
    learning", Machine Learning 8, 1992, equation 4.
    """

    id: ClassVar[str] = "reinforce"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Williams 1992: η (r − r̄) ∇ log π"
    parameter: ClassVar[Shape] = MATRIX
    activities: ClassVar[Mapping[str, Activity]] = {
        "x": Activity(("batch", "in"), "pre-synaptic activity"),
        "mean": Activity(("batch", "out"), "mean of the policy: probabilities, or Gaussian means"),
        "action": Activity(("batch", "out"), "what was sampled: one-hot, 0 or 1, or real"),
        "reward": Activity(("batch",), "reward of each action"),
    }

    learning_rate: float = 0.01
    baseline_rate: float = 0.05
    variance: float = 1.0

    def __post_init__(self) -> None:
        check_rule(
            self,
            fraction=["baseline_rate"],
            positive=["variance"],
        )

    def init(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """`baseline` = 0."""
        return {"baseline": weight.new_zeros(())}

    def propose(
        self,
        weight: torch.Tensor,
        activities: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
    ) -> Proposal:
        """The step; see the class."""
        x, reward, baseline = activities["x"], activities["reward"], state["baseline"]
        advantage = (reward - baseline) * (self.learning_rate / (self.variance * len(x)))
        score = (activities["action"] - activities["mean"]).mul_(advantage[:, None])
        mean = reward.mean()
        after = baseline + self.baseline_rate * (mean - baseline)
        return Proposal(score.mT @ x, {"baseline": after}, {"reward_mean": float(mean)})


@dataclass(frozen=True, slots=True)
class NodePerturbation:
    """ΔW = −η ⟨(L′ − L) ξ xᵀ⟩/σ²: the loss's change when noise ξ was added to the net input.

    ξ has mean 0 and variance σ² per unit (`sigma` is σ); see `perturbation`. No state.

    Fiete & Seung, "Gradient learning in spiking neural networks by dynamic perturbation of
    conductances", Physical Review Letters 97, 2006.
    """

    id: ClassVar[str] = "node-perturbation"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Fiete & Seung 2006: −η (L′ − L) ξ xᵀ/σ²"
    parameter: ClassVar[Shape] = MATRIX
    activities: ClassVar[Mapping[str, Activity]] = {
        "x": Activity(("batch", "in"), "pre-synaptic activity"),
        "noise": Activity(("batch", "out"), "what was added to the net input, variance σ²"),
        "loss": Activity(("batch",), "loss without the noise"),
        "perturbed_loss": Activity(("batch",), "loss with it"),
    }

    learning_rate: float = 0.01
    sigma: float = 0.01

    def __post_init__(self) -> None:
        check_rule(self, positive=["sigma"])

    def init(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """No state."""
        return {}

    def propose(
        self,
        weight: torch.Tensor,
        activities: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
    ) -> Proposal:
        """The step; see the class."""
        x, rise = activities["x"], activities["perturbed_loss"] - activities["loss"]
        gain = rise * (-self.learning_rate / (self.sigma**2 * len(x)))
        delta = (activities["noise"] * gain[:, None]).mT @ x
        return Proposal(delta, {}, {"loss_rise_mean": float(rise.mean())})


def perturbation(like: torch.Tensor, sigma: float, seed: int) -> torch.Tensor:
    """Gaussian noise in the shape and dtype of `like`, the same for a seed on every device."""
    generator = torch.Generator().manual_seed(int(number("seed", seed)))
    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    return noise.mul_(number("sigma", sigma)).to(like.device)
