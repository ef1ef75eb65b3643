"""Rules that hold activity near a target instead of learning what it means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from weightledger.rules.protocol import MATRIX, Activity, Proposal, Shape
from weightledger.rules.ranges import check_rule


@dataclass(frozen=True, slots=True)
class SynapticScaling:
    """ΔW = η (ρ* − ρ̄) ⊙ W: all inputs of a neuron grow while it fires less than ρ*, and shrink.

    State: `rate` ρ̄ [out], starting at ρ*: ρ̄ ← ρ̄ + `rate_step` (⟨y⟩ − ρ̄), moved before it is
    used. Ratios between a neuron's weights stay as they are. A neuron that is silent because its
    inputs are would be scaled up for ever: its weights grow until the largest is `w_max`, and those
    that are larger already only shrink.

    Turrigiano, "The self-tuning neuron: synaptic scaling of excitatory synapses", Cell 135, 2008;
    the form is van Rossum, Bi & Turrigiano's, J. Neuroscience 20, 2000.
    """

    id: ClassVar[str] = "synaptic-scaling"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Turrigiano 2008: weights of a neuron scaled to a target rate"
    parameter: ClassVar[Shape] = MATRIX
    activities: ClassVar[Mapping[str, Activity]] = {
        "y": Activity(("batch", "out"), "post-synaptic activity"),
    }

    learning_rate: float = 0.01
    target_rate: float = 0.1
    rate_step: float = 0.1
    w_max: float = 10.0

    def __post_init__(self) -> None:
        check_rule(
            self,
            not_negative=["target_rate"],
            fraction=["rate_step"],
            positive=["w_max"],
        )

    def init(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """`rate` [out] = the target."""
        return {"rate": weight.new_full(weight.shape[:1], self.target_rate)}

    def propose(
        self,
        weight: torch.Tensor,
        activities: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
    ) -> Proposal:
        """The step; see the class."""
        rate = torch.lerp(state["rate"], activities["y"].mean(0), self.rate_step)
        growth = (self.target_rate - rate).mul_(self.learning_rate)
        low, high = torch.aminmax(weight, dim=1)
        room = (self.w_max / torch.maximum(-low, high)).sub_(1).clamp_(min=0)
        torch.minimum(growth, room, out=growth)
        return Proposal(weight * growth[:, None], {"rate": rate}, {"rate_mean": float(rate.mean())})


@dataclass(frozen=True, slots=True)
class IntrinsicPlasticity:
    """Δb = −η ⟨−μ/σ² + (y/σ²)(2σ² + 1 − y² + μ y)⟩: y = tanh(· + b) tends to a Gaussian (μ, σ²).

    The parameter is a bias [out]; y is in (−1, 1). One step down the Kullback-Leibler divergence
    from the neuron's activity to the target. No state.

    Schrauwen, Wardermann, Verstraeten, Steil & Stroobandt, "Improving reservoirs using intrinsic
    plasticity", Neurocomputing 71, 2008, equation 9, after Triesch, ICANN 2005.
    """

    id: ClassVar[str] = "intrinsic-plasticity"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Schrauwen 2008: biases of tanh units for a Gaussian activity"
    parameter: ClassVar[Shape] = ("out",)
    activities: ClassVar[Mapping[str, Activity]] = {
        "y": Activity(("batch", "out"), "activity of the tanh units"),
    }

    learning_rate: float = 0.001
    mean: float = 0.0
    sigma: float = 0.2

    def __post_init__(self) -> None:
        check_rule(self, positive=["sigma"], between={"mean": (-1, 1)})

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
        y, variance = activities["y"], self.sigma**2
        pull = (2 * variance + 1 - y.square() + self.mean * y).mul_(y).sub_(self.mean)
        return Proposal(pull.mean(0).mul_(-self.learning_rate / variance), {})
