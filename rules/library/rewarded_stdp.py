"""Spike timing that a later reward turns into learning: eligibility per synapse.

Each row of the window is one step of `dt_ms`, in which traces and eligibility decay, then take
the step's own spikes, then are used with the step's own reward (`Mstdpet` has the other order too).
Coincident spikes count both
ways, as in `library.stdp`. Per synapse the window is c_t = λ c_{t−1} + STDP_t and Σ_t g_t c_t with
one number g_t a step, so it is two matrix products, whatever the window's length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from weightledger.rules.library.stdp import SPIKES, clip_step, silent_traces, stacked
from weightledger.rules.library.traces import decay, discounted_sums, filtered
from weightledger.rules.protocol import MATRIX, Activity, Proposal, Shape
from weightledger.rules.ranges import check_choice, check_rule

REWARDED_SPIKES: Mapping[str, Activity] = {
    **SPIKES,
    "reward": Activity(("time",), "reward received in the step"),
}


@dataclass(frozen=True, slots=True)
class RStdp:
    """ċ = −c/τ_c + STDP, ḋ = −d/τ_d + reward, ẇ = η c d, time in seconds.

    STDP is that of pairs, with τ₊, τ₋, A₊, A₋; in a step d ← d e^(−dt/τ_d) + r and the weight
    changes by η c d dt. State: `eligibility` c [out, in], `dopamine` d, a number, `pre_trace`
    [in], `post_trace` [out]. The result is clipped to [w_min, w_max] once per proposal.

    Izhikevich, "Solving the distal reward problem through linkage of STDP and dopamine
    signaling", Cerebral Cortex 17, 2007, equations 1–3: τ_c 1 s, τ_d 200 ms.
    """

    id: ClassVar[str] = "r-stdp"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Izhikevich 2007: STDP leaves eligibility, dopamine makes it learning"
    parameter: ClassVar[Shape] = MATRIX
    activities: ClassVar[Mapping[str, Activity]] = REWARDED_SPIKES

    learning_rate: float = 1.0
    a_plus: float = 0.005
    a_minus: float = 0.00525
    tau_plus_ms: float = 20.0
    tau_minus_ms: float = 20.0
    tau_eligibility_ms: float = 1000.0
    tau_dopamine_ms: float = 200.0
    dt_ms: float = 1.0
    w_min: float = -1.0
    w_max: float = 1.0

    def __post_init__(self) -> None:
        check_rule(
            self,
            not_negative=["a_plus", "a_minus"],
            positive=[
                "tau_plus_ms",
                "tau_minus_ms",
                "tau_eligibility_ms",
                "tau_dopamine_ms",
                "dt_ms",
            ],
        )

    def init(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Traces, eligibility and dopamine at 0."""
        return {
            **silent_traces(weight),
            "eligibility": torch.zeros_like(weight),
            "dopamine": weight.new_zeros(()),
        }

    def propose(
        self,
        weight: torch.Tensor,
        activities: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
    ) -> Proposal:
        """The step; see the class."""
        pre, post, reward = (activities[name] for name in REWARDED_SPIKES)
        x = filtered(pre, state["pre_trace"], decay(self.dt_ms, self.tau_plus_ms))
        y = filtered(post, state["post_trace"], decay(self.dt_ms, self.tau_minus_ms))
        dopamine = filtered(reward, state["dopamine"], decay(self.dt_ms, self.tau_dopamine_ms))
        factors = stacked(post, x, y, pre, self.a_plus, self.a_minus)
        delta, eligibility = integrate(
            state["eligibility"],
            factors,
            dopamine * (self.learning_rate * self.dt_ms / 1000),
            decay(self.dt_ms, self.tau_eligibility_ms),
        )
        clip_step(delta, weight, self.w_min, self.w_max)
        after = {
            "pre_trace": x[-1].clone(),
            "post_trace": y[-1].clone(),
            "eligibility": eligibility,
            "dopamine": dopamine[-1].clone(),
        }
        return Proposal(delta, after, {"dopamine": float(dopamine[-1])})


@dataclass(frozen=True, slots=True)
class Mstdpet:
    """z ← z e^(−dt/τ_e) + ζ/τ_e, Δw = γ r z: reward-modulated STDP with an eligibility trace.

    ζ = A₊ s_post x̄ − A₋ ȳ s_pre in each step; τ_e in ms. State: `eligibility` z [out, in],
    `pre_trace` [in], `post_trace` [out]. γ is `learning_rate`. The result is clipped to
    [w_min, w_max] once per proposal.

    `reward_timing` says which z the reward of a row meets. "same step": the z that the row's own
    spikes are in already, as spikingjelly and snntorch have it. "next step": the z that the row
    before left, so that a reward answers spikes one step after them, as in the paper's discrete
    form, Δw(t) = γ r(t + δt) z(t + δt) with z(t + δt) = β z(t) + ζ(t)/τ_e. The two differ by a
    shift of the rewards by one row, and vanish in each other for a small dt.

    Florian, "Reinforcement learning through modulation of spike-timing-dependent synaptic
    plasticity", Neural Computation 19, 2007, equations 24–28 (MSTDPET).
    """

    id: ClassVar[str] = "mstdpet"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Florian 2007: reward times an eligibility trace of STDP"
    parameter: ClassVar[Shape] = MATRIX
    activities: ClassVar[Mapping[str, Activity]] = REWARDED_SPIKES

    learning_rate: float = 1.0
    a_plus: float = 0.005
    a_minus: float = 0.00525
    tau_plus_ms: float = 20.0
    tau_minus_ms: float = 20.0
    tau_eligibility_ms: float = 25.0
    dt_ms: float = 1.0
    w_min: float = -1.0
    w_max: float = 1.0
    reward_timing: Literal["same step", "next step"] = "same step"

    def __post_init__(self) -> None:
        check_rule(
            self,
            not_negative=["a_plus", "a_minus"],
            positive=["tau_plus_ms", "tau_minus_ms", "tau_eligibility_ms", "dt_ms"],
        )
        check_choice("reward_timing", self.reward_timing, ("same step", "next step"))

    def init(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Traces and eligibility at 0."""
        return {**silent_traces(weight), "eligibility": torch.zeros_like(weight)}

    def propose(
        self,
        weight: torch.Tensor,
        activities: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
    ) -> Proposal:
        """The step; see the class."""
        pre, post, reward = (activities[name] for name in REWARDED_SPIKES)
        x = filtered(pre, state["pre_trace"], decay(self.dt_ms, self.tau_plus_ms))
        y = filtered(post, state["post_trace"], decay(self.dt_ms, self.tau_minus_ms))
        per_ms = 1 / self.tau_eligibility_ms
        before, gain = state["eligibility"], reward * self.learning_rate
        late = self.reward_timing == "next step"
        delta, eligibility = integrate(
            before,
            stacked(post, x, y, pre, self.a_plus * per_ms, self.a_minus * per_ms),
            torch.cat([gain[1:], torch.zeros_like(gain[:1])]) if late else gain,
            decay(self.dt_ms, self.tau_eligibility_ms),
        )
        if late:  # the first reward meets what the window before left
            delta.addcmul_(before, gain[0])
        clip_step(delta, weight, self.w_min, self.w_max)
        after = {
            "pre_trace": x[-1].clone(),
            "post_trace": y[-1].clone(),
            "eligibility": eligibility,
        }
        return Proposal(delta, after, {"reward_mean": float(reward.mean())})


def integrate(
    eligibility: torch.Tensor,
    factors: tuple[torch.Tensor, torch.Tensor],
    gain: torch.Tensor,
    factor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_t gain_t c_t over the window and its last c, with c_t = factor·c_{t−1} + STDP_t.

    `factors` are the window's STDP as `library.stdp.stacked` gives it, `gain` [time].
    """
    left, right = factors
    time = gain.shape[0]
    worth = discounted_sums(gain, factor)
    left_over = [factor ** (time - 1 - step) for step in range(time)]
    remaining = torch.tensor(left_over, dtype=gain.dtype, device=gain.device)
    total = eligibility * (worth[0] * factor)
    total.addmm_((left * worth.repeat(2)[:, None]).mT, right)
    last = eligibility * factor**time
    last.addmm_((left * remaining.repeat(2)[:, None]).mT, right)
    return total, last
