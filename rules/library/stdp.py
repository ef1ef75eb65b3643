"""Spike-timing-dependent plasticity: pairs and triplets of spikes.

Spikes are 0 or 1, [time, in] and [time, out]; each row is one step of `dt_ms` milliseconds and a
proposal adds up the window's steps. In a step the traces decay, then take the step's own spikes,
then are used. So where a synapse's both ends fire in one step, the pair counts both ways: the
potentiation by a fresh pre-synaptic trace and the depression by a fresh post-synaptic one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from weightledger.rules.library.traces import decay, delayed, filtered
from weightledger.rules.protocol import MATRIX, Activity, Proposal, Shape
from weightledger.rules.ranges import check_rule

SPIKES: Mapping[str, Activity] = {
    "pre_spikes": Activity(("time", "in"), "1 where the pre-synaptic neuron fired, else 0"),
    "post_spikes": Activity(("time", "out"), "1 where the post-synaptic neuron fired, else 0"),
}


@dataclass(frozen=True, slots=True)
class PairStdp:
    """All-to-all pairs: on a post-synaptic spike +η A₊ x̄, on a pre-synaptic one −η A₋ ȳ.

    x̄ ← x̄ e^(−dt/τ₊) + s_pre and ȳ ← ȳ e^(−dt/τ₋) + s_post. The result is clipped to
    [w_min, w_max], once per proposal; a weight that is outside already is not pulled in.
    State: `pre_trace` [in], `post_trace` [out].

    Song, Miller & Abbott, Nature Neuroscience 3, 2000: τ 20 ms, A₊ .005, A₋ = 1.05 A₊ (their
    weights are conductances in [0, ḡ]; here they have both signs).
    """

    id: ClassVar[str] = "pair-stdp"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Song, Miller & Abbott 2000: pairs of spikes, exponential windows"
    parameter: ClassVar[Shape] = MATRIX
    activities: ClassVar[Mapping[str, Activity]] = SPIKES

    learning_rate: float = 1.0
    a_plus: float = 0.005
    a_minus: float = 0.00525
    tau_plus_ms: float = 20.0
    tau_minus_ms: float = 20.0
    dt_ms: float = 1.0
    w_min: float = -1.0
    w_max: float = 1.0

    def __post_init__(self) -> None:
        check_rule(
            self,
            not_negative=["a_plus", "a_minus"],
            positive=["tau_plus_ms", "tau_minus_ms", "dt_ms"],
        )

    def init(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Both traces at 0."""
        return silent_traces(weight)

    def propose(
        self,
        weight: torch.Tensor,
        activities: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
    ) -> Proposal:
        """The step; see the class."""
        pre, post = activities["pre_spikes"], activities["post_spikes"]
        x = filtered(pre, state["pre_trace"], decay(self.dt_ms, self.tau_plus_ms))
        y = filtered(post, state["post_trace"], decay(self.dt_ms, self.tau_minus_ms))
        delta = paired(post, x, y, pre, self.a_plus, self.a_minus, self.learning_rate)
        clip_step(delta, weight, self.w_min, self.w_max)
        return Proposal(delta, {"pre_trace": x[-1].clone(), "post_trace": y[-1].clone()})


@dataclass(frozen=True, slots=True)
class TripletStdp:
    """Triplets: on a post spike +η r₁ (A₂⁺ + A₃⁺ o₂), on a pre spike −η o₁ (A₂⁻ + A₃⁻ r₂).

    r₁ and r₂ are traces of the pre-synaptic spikes with τ₊ and τ_x, o₁ and o₂ of the post-synaptic
    ones with τ₋ and τ_y. The slow traces r₂ and o₂ are read just before the step's own spikes are
    added (the paper's t − ε), the fast ones after. The result is clipped as in `PairStdp`.
    State: `r1`, `r2` [in], `o1`, `o2` [out].

    Pfister & Gerstner, J. Neuroscience 26, 2006, equations 1–4; the defaults are their all-to-all
    fit to visual cortex (table 4).
    """

    id: ClassVar[str] = "triplet-stdp"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Pfister & Gerstner 2006: pairs and triplets of spikes"
    parameter: ClassVar[Shape] = MATRIX
    activities: ClassVar[Mapping[str, Activity]] = SPIKES

    learning_rate: float = 1.0
    a2_plus: float = 5e-10
    a3_plus: float = 6.2e-3
    a2_minus: float = 7e-3
    a3_minus: float = 2.3e-4
    tau_plus_ms: float = 16.8
    tau_minus_ms: float = 33.7
    tau_x_ms: float = 101.0
    tau_y_ms: float = 125.0
    dt_ms: float = 1.0
    w_min: float = -1.0
    w_max: float = 1.0

    def __post_init__(self) -> None:
        check_rule(
            self,
            not_negative=["a2_plus", "a3_plus", "a2_minus", "a3_minus"],
            positive=["tau_plus_ms", "tau_minus_ms", "tau_x_ms", "tau_y_ms", "dt_ms"],
        )

    def init(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """All four traces at 0."""
        pre, post = weight.new_zeros(weight.shape[1]), weight.new_zeros(weight.shape[0])
        return {"r1": pre, "r2": pre.clone(), "o1": post, "o2": post.clone()}

    def propose(
        self,
        weight: torch.Tensor,
        activities: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
    ) -> Proposal:
        """The step; see the class."""
        pre, post = activities["pre_spikes"], activities["post_spikes"]
        slow_x, slow_y = decay(self.dt_ms, self.tau_x_ms), decay(self.dt_ms, self.tau_y_ms)
        r1 = filtered(pre, state["r1"], decay(self.dt_ms, self.tau_plus_ms))
        o1 = filtered(post, state["o1"], decay(self.dt_ms, self.tau_minus_ms))
        r2, o2 = filtered(pre, state["r2"], slow_x), filtered(post, state["o2"], slow_y)
        post_factor = delayed(o2, state["o2"], slow_y).mul_(self.a3_plus).add_(self.a2_plus)
        pre_factor = delayed(r2, state["r2"], slow_x).mul_(self.a3_minus).add_(self.a2_minus)
        delta = paired(
            post_factor.mul_(post), r1, o1, pre_factor.mul_(pre), 1.0, 1.0, self.learning_rate
        )
        clip_step(delta, weight, self.w_min, self.w_max)
        traces = {"r1": r1, "r2": r2, "o1": o1, "o2": o2}
        return Proposal(delta, {name: trace[-1].clone() for name, trace in traces.items()})


def silent_traces(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Traces of synapses that never saw a spike."""
    return {
        "pre_trace": weight.new_zeros(weight.shape[1]),
        "post_trace": weight.new_zeros(weight.shape[0]),
    }


def stacked(
    post: torch.Tensor,
    pre_trace: torch.Tensor,
    post_trace: torch.Tensor,
    pre: torch.Tensor,
    a_plus: float,
    a_minus: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors [2·time, out] and [2·time, in] whose product is A₊ Σ s_post x̄ᵀ − A₋ Σ ȳ s_preᵀ.

    One product over both halves passes over the weight's memory once instead of twice.
    """
    return torch.cat([post * a_plus, post_trace * -a_minus]), torch.cat([pre_trace, pre])


def paired(
    post: torch.Tensor,
    pre_trace: torch.Tensor,
    post_trace: torch.Tensor,
    pre: torch.Tensor,
    a_plus: float,
    a_minus: float,
    learning_rate: float,
) -> torch.Tensor:
    """η (A₊ Σ s_post x̄ᵀ − A₋ Σ ȳ s_preᵀ), [out, in], the sum over the window."""
    left, right = stacked(post, pre_trace, post_trace, pre, a_plus, a_minus)
    return left.mul_(learning_rate).mT @ right


def clip_step(delta: torch.Tensor, weight: torch.Tensor, low: float, high: float) -> None:
    """Shorten `delta`, in place, so that it takes no weight out of [low, high].

    A weight outside already may only come closer; it is not moved to the bound.
    """
    if delta.numel() == 0:
        return
    (w_low, w_high), (d_low, d_high) = torch.aminmax(weight), torch.aminmax(delta)
    # Extremes first: where no sum can leave the bounds, two reads replace six passes.
    if bool((w_low + d_low >= low) & (w_high + d_high <= high)):
        return
    room = torch.sub(high, weight).clamp_(min=0)
    torch.minimum(delta, room, out=delta)
    torch.sub(low, weight, out=room).clamp_(max=0)
    torch.maximum(delta, room, out=delta)
