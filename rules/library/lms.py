"""Least mean squares: a step down the squared error of a layer's output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from weightledger.rules.protocol import MATRIX, Activity, Proposal, Shape
from weightledger.rules.ranges import check_rule

SUPERVISED: Mapping[str, Activity] = {
    "x": Activity(("batch", "in"), "input of the layer"),
    "y": Activity(("batch", "out"), "its output, computed with the weight as it is"),
    "target": Activity(("batch", "out"), "what the output should have been"),
}


@dataclass(frozen=True, slots=True)
class Lms:
    """ΔW = η ⟨(d − y) xᵀ⟩, the mean over the batch; d is `target`.

    Widrow & Hoff, "Adaptive switching circuits", IRE WESCON 1960.
    """

    id: ClassVar[str] = "lms"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Widrow & Hoff 1960: η (d − y) xᵀ"
    parameter: ClassVar[Shape] = MATRIX
    activities: ClassVar[Mapping[str, Activity]] = SUPERVISED

    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        check_rule(self)

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
        x, error = activities["x"], activities["target"] - activities["y"]
        metrics = {"squared_error": float(error.square().mean())}
        return Proposal(error.mul_(self.learning_rate / len(x)).mT @ x, {}, metrics)


@dataclass(frozen=True, slots=True)
class Nlms:
    """ΔW = η ⟨(d − y) xᵀ/(ε + ‖x‖²)⟩: each sample's step is relative to its input's power.

    Stable for 0 < η < 2 with one sample a step. Nagumo & Noda, IEEE Trans. Automatic Control 12,
    1967; ε as in Haykin, "Adaptive Filter Theory", chapter 6.
    """

    id: ClassVar[str] = "nlms"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Nagumo & Noda 1967: LMS relative to the input's power"
    parameter: ClassVar[Shape] = MATRIX
    activities: ClassVar[Mapping[str, Activity]] = SUPERVISED

    learning_rate: float = 0.5
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_rule(self, positive=["epsilon"])

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
        x, error = activities["x"], activities["target"] - activities["y"]
        metrics = {"squared_error": float(error.square().mean())}
        power = torch.linalg.vecdot(x, x).add_(self.epsilon).mul_(len(x))
        return Proposal(error.div_(power[:, None]).mul_(self.learning_rate).mT @ x, {}, metrics)
