"""The four specified rules for callers that send a proposed change and no activities.

Without activities there is no y xᵀ to compute; what is known is the parameter W and the change u
that was asked for. Each rule shapes u in the spirit of its name. All are bounded by what was
asked for, row by row (a row is what one output unit receives: index 0 of the parameter; a bias
has rows of one value):

    ‖ΔW_i‖ ≤ η ‖u_i‖, for `stdp-delta` times max(A₊, A₋)

so a finite request gives a finite step of at most its own size, with the learning rate applied
once. These forms are this project's own; only the rules named after papers are the papers'.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from weightledger.rules.protocol import ANY_SHAPE, Activity, Proposal, Shape
from weightledger.rules.ranges import check_rule

REQUESTED: Mapping[str, Activity] = {
    "delta": Activity(ANY_SHAPE, "the change asked for, u, before any learning rate"),
}


@dataclass(frozen=True, slots=True)
class HebbianDelta:
    """ΔW_i = η (u_i − max(0, u_i·ŵ_i) ŵ_i) with ŵ_i = W_i/‖W_i‖.

    u stands for the correlation y xᵀ. Oja's rule turns a row of length 1 towards it and leaves
    its length alone; here likewise what would only lengthen a row is taken out. What shortens
    it stays. Rows of zeros take u as it is.
    """

    id: ClassVar[str] = "hebbian-delta"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a requested change, less what only lengthens a row (Hebb, Oja)"
    parameter: ClassVar[Shape] = ANY_SHAPE
    activities: ClassVar[Mapping[str, Activity]] = REQUESTED

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
        w, u = rows(weight), rows(activities["delta"])
        length = torch.linalg.vector_norm(w, dim=1, keepdim=True)
        direction = w / length.masked_fill(length == 0, 1)
        largest = magnitude(u)
        scaled = u / largest
        along = torch.linalg.vecdot(direction, scaled)[:, None].clamp_(min=0)
        delta = scaled.sub_(direction.mul_(along)).mul_(largest * self.learning_rate)
        return Proposal(delta.reshape(weight.shape), {})


@dataclass(frozen=True, slots=True)
class StdpDelta:
    """ΔW = η A₊ u ⊙ (w_max − W)/(w_max − w_min) where u > 0, η A₋ u ⊙ (W − w_min)/(…) elsewhere.

    The soft bounds of weight-dependent STDP: potentiation shrinks towards w_max, depression
    towards w_min. The fraction is held within [0, 1], so weights outside the bounds come back or
    stay. Van Rossum, Bi & Turrigiano, J. Neuroscience 20, 2000, for the weight dependence.
    """

    id: ClassVar[str] = "stdp-delta"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a requested change with the soft bounds of weight-dependent STDP"
    parameter: ClassVar[Shape] = ANY_SHAPE
    activities: ClassVar[Mapping[str, Activity]] = REQUESTED

    learning_rate: float = 0.01
    a_plus: float = 1.0
    a_minus: float = 1.05
    w_min: float = -1.0
    w_max: float = 1.0

    def __post_init__(self) -> None:
        check_rule(self, not_negative=["a_plus", "a_minus"])

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
        u, span = activities["delta"], self.w_max - self.w_min
        room = (weight - self.w_min).div_(span).clamp_(0, 1)
        delta = torch.clamp(u, max=0).mul_(room).mul_(self.learning_rate * self.a_minus)
        rise = torch.clamp(u, min=0).mul_(room.neg_().add_(1))
        return Proposal(delta.add_(rise, alpha=self.learning_rate * self.a_plus), {})


@dataclass(frozen=True, slots=True)
class BcmDelta:
    """ΔW_i = η φ_i u_i with φ_i = clip(y_i (y_i − θ_i), −1, 1), y_i = rms(u_i)/rms(u).

    y says how strongly row i is asked to change beside the others; rows asked for more than their
    habit θ_i are strengthened, rows asked for less go the other way, as y (y − θ) does for a
    neuron. State: `theta` [rows], starting at 0; used, then
    θ ← θ + `adaptation_rate` (y² − θ). A request of zeros changes nothing.
    """

    id: ClassVar[str] = "bcm-delta"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a requested change, row by row above or below a sliding threshold"
    parameter: ClassVar[Shape] = ANY_SHAPE
    activities: ClassVar[Mapping[str, Activity]] = REQUESTED

    learning_rate: float = 0.01
    adaptation_rate: float = 0.1

    def __post_init__(self) -> None:
        check_rule(self, fraction=["adaptation_rate"])

    def init(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """`theta` [rows] = 0."""
        return {"theta": weight.new_zeros(len(rows(weight)))}

    def propose(
        self,
        weight: torch.Tensor,
        activities: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
    ) -> Proposal:
        """The step; see the class."""
        u, theta = rows(activities["delta"]), state["theta"]
        delta = u / magnitude(u)
        length = torch.linalg.vector_norm(delta, dim=1)
        mean = torch.linalg.vector_norm(length) / len(u) ** 0.5
        y = length / mean.masked_fill(mean == 0, 1)
        phi = (y - theta).mul_(y).clamp_(-1, 1)
        torch.mul(u, (phi * self.learning_rate)[:, None], out=delta)
        after = torch.lerp(theta, y.square(), self.adaptation_rate)
        metrics = {"rows_strengthened": float((phi > 0).sum())}
        return Proposal(delta.reshape(weight.shape), {"theta": after}, metrics)


@dataclass(frozen=True, slots=True)
class ReinforcementDelta:
    """ΔW = η clip(r − r̄, −1, 1) u: a change that did better than usual is taken, else undone.

    `reward` is one number, such as the feedback of `rules.selectors`. State: `baseline` r̄,
    starting at 0; used, then r̄ ← r̄ + `baseline_rate` (r − r̄).
    """

    id: ClassVar[str] = "reinforcement-delta"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a requested change, times how much better than usual it went"
    parameter: ClassVar[Shape] = ANY_SHAPE
    activities: ClassVar[Mapping[str, Activity]] = {
        **REQUESTED,
        "reward": Activity((), "how well it went"),
    }

    learning_rate: float = 0.01
    baseline_rate: float = 0.1

    def __post_init__(self) -> None:
        check_rule(self, fraction=["baseline_rate"])

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
        reward, baseline = activities["reward"], state["baseline"]
        advantage = (reward - baseline).clamp(-1, 1)
        delta = activities["delta"] * (advantage * self.learning_rate)
        after = torch.lerp(baseline, reward, self.baseline_rate)
        return Proposal(delta, {"baseline": after}, {"advantage": float(advantage)})


def rows(tensor: torch.Tensor) -> torch.Tensor:
    """[rows, values]: one row for each output unit; a number is one row of one value."""
    return tensor.reshape(tensor.shape[0] if tensor.ndim else 1, -1)


def magnitude(tensor: torch.Tensor) -> torch.Tensor:
    """The largest absolute value, or 1 for zeros: dividing by it keeps squares from overflowing."""
    low, high = torch.aminmax(tensor)
    largest = torch.maximum(-low, high)
    return largest.masked_fill(largest == 0, 1)
