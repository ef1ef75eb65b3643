"""Hebb's rule and its two stable descendants, which find principal components."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from weightledger.rules.protocol import MATRIX, Activity, Proposal, Shape
from weightledger.rules.ranges import check_rule

PRE_AND_POST: Mapping[str, Activity] = {
    "x": Activity(("batch", "in"), "pre-synaptic activity"),
    "y": Activity(("batch", "out"), "post-synaptic activity"),
}


@dataclass(frozen=True, slots=True)
class Hebb:
    """ΔW = η ⟨y xᵀ⟩, the mean over the batch. Nothing bounds the weights.

    Hebb, "The Organization of Behavior", 1949.
    """

    id: ClassVar[str] = "hebb"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Hebb 1949: η y xᵀ, unbounded"
    parameter: ClassVar[Shape] = MATRIX
    activities: ClassVar[Mapping[str, Activity]] = PRE_AND_POST

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
        x, y = activities["x"], activities["y"]
        return Proposal((y * (self.learning_rate / len(x))).mT @ x, {})


@dataclass(frozen=True, slots=True)
class Oja:
    """ΔW = η (⟨y xᵀ⟩ − ⟨y²⟩ ⊙ W): each row turns to the first principal component, length 1.

    ⟨y²⟩ is [out] and multiplies rows. Oja, "A simplified neuron model as a principal component
    analyzer", J. Math. Biology 15, 1982, equation 3.
    """

    id: ClassVar[str] = "oja"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Oja 1982: η (y xᵀ − y² ⊙ W), the first principal component"
    parameter: ClassVar[Shape] = MATRIX
    activities: ClassVar[Mapping[str, Activity]] = PRE_AND_POST

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
        x, y = activities["x"], activities["y"]
        scaled = y * (self.learning_rate / len(x))
        delta = weight * -(scaled * y).sum(0)[:, None]
        return Proposal(delta.addmm_(scaled.mT, x), {})


@dataclass(frozen=True, slots=True)
class Sanger:
    """ΔW = η (⟨y xᵀ⟩ − tril⟨y yᵀ⟩ W): row i turns to the i-th principal component, length 1.

    tril keeps the diagonal and what is below it. Sanger, "Optimal unsupervised learning in a
    single-layer linear feedforward neural network", Neural Networks 2, 1989, equation 4.
    """

    id: ClassVar[str] = "sanger"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Sanger 1989: η (y xᵀ − tril(y yᵀ) W), all principal components"
    parameter: ClassVar[Shape] = MATRIX
    activities: ClassVar[Mapping[str, Activity]] = PRE_AND_POST

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
        x, y = activities["x"], activities["y"]
        scaled = (y * (self.learning_rate / len(x))).mT
        delta = scaled @ x
        return Proposal(delta.addmm_((scaled @ y).tril_(), weight, alpha=-1), {})
