"""Elastic weight consolidation: steps that spare what earlier tasks need."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from weightledger.rules.protocol import ANY_SHAPE, Activity, Proposal, Shape
from weightledger.rules.ranges import check_rule

Logits = Callable[[Mapping[str, torch.Tensor], torch.Tensor], torch.Tensor]
"""Class scores [batch, classes] of inputs [batch, …], from parameters by name."""


@dataclass(frozen=True, slots=True)
class Ewc:
    """W′ = (V + ηλ F ⊙ W*)/(1 + ηλ F), the proximal step of (λ/2) Σ F (W − W*)² from V = W + δ.

    δ is a proposed delta, its own learning rate applied; η and λ are `learning_rate` and
    `strength`. The result is the delta W′ − W. Unlike a gradient step on the penalty it cannot
    overshoot: a weight with a large F stays at W*, whatever ηλ.

    State: `fisher` F and `anchor` W*, of the parameter's shape; F is 0 until `consolidate`.

    Kirkpatrick et al., PNAS 114, 2017, equation 3; the online form F ← γ F + F_new with one
    anchor is Schwarz et al., "Progress & Compress", ICML 2018.
    """

    id: ClassVar[str] = "ewc"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Kirkpatrick 2017, Schwarz 2018: a delta pulled to what must be kept"
    parameter: ClassVar[Shape] = ANY_SHAPE
    activities: ClassVar[Mapping[str, Activity]] = {
        "delta": Activity(ANY_SHAPE, "a proposed delta, its learning rate applied"),
    }

    learning_rate: float = 0.01
    strength: float = 100.0
    fisher_decay: float = 0.95

    def __post_init__(self) -> None:
        check_rule(self, not_negative=["strength"], fraction=["fisher_decay"])

    def init(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """`fisher` 0: nothing is protected; `anchor` the weight."""
        return {"fisher": torch.zeros_like(weight), "anchor": weight.clone()}

    def propose(
        self,
        weight: torch.Tensor,
        activities: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
    ) -> Proposal:
        """The step; see the class."""
        pull = state["fisher"] * (self.learning_rate * self.strength)
        # W′ − W in this form loses nothing where δ is small beside W.
        delta = (state["anchor"] - weight).mul_(pull).add_(activities["delta"])
        return Proposal(delta.div_(pull.add_(1)), dict(state))

    def consolidate(
        self,
        state: Mapping[str, torch.Tensor],
        weight: torch.Tensor,
        fisher: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The state when a task ends: F ← γ F + `fisher`, W* ← `weight`."""
        decayed = state["fisher"] * self.fisher_decay
        return {**state, "fisher": decayed.add_(fisher), "anchor": weight.detach().clone()}


def fisher_diagonal(
    logits: Logits,
    parameters: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    *,
    chunk: int = 16,
) -> dict[str, torch.Tensor]:
    """The diagonal of the Fisher information of a softmax classifier, by parameter name.

    F = ⟨Σ_c p_c (∂ log p_c/∂W)²⟩: the exact expectation over the model's own labels, sample by
    sample, not the square of a batch's gradient and not the labels of the data (Kunstner et al.,
    NeurIPS 2019, say why that matters). `inputs` is [samples, …]; `chunk` samples are
    differentiated at once, each taking classes × parameters of memory.
    """
    detached = {name: tensor.detach() for name, tensor in parameters.items()}

    def scores(values: Mapping[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits(values, sample[None])[0], dim=-1)

    jacobian = torch.func.vmap(torch.func.jacrev(scores), in_dims=(None, 0))
    chances = torch.func.vmap(scores, in_dims=(None, 0))
    total = {name: torch.zeros_like(tensor) for name, tensor in detached.items()}
    # Parameters that `logits` holds beside these may want gradients; nobody here does.
    with torch.no_grad():
        for piece in torch.split(inputs, chunk):
            weight = chances(detached, piece).exp().flatten()
            for name, slopes in jacobian(detached, piece).items():
                total[name] += torch.tensordot(weight, slopes.square().flatten(0, 1), dims=1)
    return {name: summed.div_(len(inputs)) for name, summed in total.items()}
