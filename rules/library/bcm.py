"""The BCM rule: a sliding threshold between weakening and strengthening."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from weightledger.rules.library.hebbian import PRE_AND_POST
from weightledger.rules.library.traces import decay, filtered
from weightledger.rules.protocol import MATRIX, Activity, Proposal, Shape
from weightledger.rules.ranges import check_rule


@dataclass(frozen=True, slots=True)
class Bcm:
    """ΔW = η ⟨y (y − θ) xᵀ⟩ with τ_θ θ̇ = y² − θ, both in samples.

    State: `theta` [out], starting at 0. Each row of the batch is weighed against the θ of the
    rows before it; then θ ← θ + (1 − e^(−1/τ_θ)) (y² − θ), the exact step for y held constant.

    θ must be fast: with η = .005 and two equiprobable inputs τ_θ ≤ 100 gives a selective cell
    whose response is 2, 500 oscillates, 2000 diverges (Udeigwe, Munro & Ermentrout 2017 study
    why). Bienenstock, Cooper & Munro, J. Neuroscience 2, 1982; θ = E[y²] after Intrator & Cooper,
    Neural Networks 5, 1992.
    """

    id: ClassVar[str] = "bcm"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Bienenstock, Cooper & Munro 1982: η y (y − θ) xᵀ, θ follows y²"
    parameter: ClassVar[Shape] = MATRIX
    activities: ClassVar[Mapping[str, Activity]] = PRE_AND_POST

    learning_rate: float = 0.005
    tau_theta: float = 50.0

    def __post_init__(self) -> None:
        check_rule(self, positive=["tau_theta"])

    def init(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """`theta` [out] = 0."""
        return {"theta": weight.new_zeros(weight.shape[0])}

    def propose(
        self,
        weight: torch.Tensor,
        activities: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
    ) -> Proposal:
        """The step; see the class."""
        x, y = activities["x"], activities["y"]
        factor = decay(1.0, self.tau_theta)
        after = filtered(y.square(), state["theta"], factor, gain=1 - factor)
        before = torch.cat([state["theta"][None], after[:-1]])
        change = (y - before).mul_(y).mul_(self.learning_rate / len(x))
        theta = after[-1].clone()
        return Proposal(change.mT @ x, {"theta": theta}, {"theta_mean": float(theta.mean())})
