"""One call's learning, pure: a weight, activities and states in; a delta and next states out.

The activities are taken in batches, each proposed on what the ones before it made. It is computed
again from recorded activities by `rules.dtesn.recomputing`, so all it depends on is passed in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from weightledger.rules.checking import check_activities, init, is_finite, propose
from weightledger.rules.dtesn.gate import SCORED, PairedGate, Tally, check_scored, tally_for
from weightledger.rules.dtesn.samples import Samples, samples
from weightledger.rules.library.homeostasis import SynapticScaling
from weightledger.rules.protocol import MATRIX, Rule

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Passes:
    """How the activities are gone through; see `DTESNLearningConfig`."""

    batch_size: int
    max_iterations: int
    convergence_threshold: float
    homeostasis: SynapticScaling | None = None
    gate: PairedGate | None = None


@dataclass(frozen=True, slots=True)
class Taught:
    """What came of it: `delta` is added to the weight; states are those to go on with.

    `converged` says whether the last pass moved the weight by less than the threshold.
    """

    delta: torch.Tensor
    state: Tensors
    scaling: Tensors
    metrics: Mapping[str, float]
    proposals: int
    iterations: int
    converged: bool
    tally: Tally | None


@dataclass(slots=True)
class _Learner:
    rule: Rule
    weight: torch.Tensor
    state: Tensors
    scaling: Tensors
    homeostasis: SynapticScaling | None
    delta: torch.Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)
    proposals: int = 0

    def take(self, batch: Tensors) -> None:
        """One proposal and, after it, scaling."""
        wanted = {name: batch[name] for name in self.rule.activities if name in batch}
        proposal = propose(self.rule, self.weight + self.delta, wanted, self.state)
        self.delta = self.delta + proposal.delta
        self.state, self.metrics = proposal.state, proposal.metrics
        self.proposals += 1
        if self.homeostasis is not None and is_finite(self.delta):
            scaled = propose(
                self.homeostasis, self.weight + self.delta, {"y": batch["y"]}, self.scaling
            )
            self.delta, self.scaling = self.delta + scaled.delta, scaled.state


def teach(
    rule: Rule,
    weight: torch.Tensor,
    activities: Tensors,
    state: Tensors,
    scaling: Tensors,
    passes: Passes,
) -> Taught:
    """Learn from `activities`: those the rule wants, and x, y and target where a gate scores.

    A rule with a target learns a linear readout, so its y follows the weight within the call:
    y + x Δᵀ. Other rules' activities are what was observed, and stay. A gate answers each sample
    before it is learnt from; where there are none, since a change was asked for, the change is
    scored on all of x, which then is for that and nothing else. Raises what `rules.propose` raises.
    """
    check_activities(rule, weight, {name: activities[name] for name in rule.activities})
    tally = None
    if passes.gate is not None:
        check_scored(weight, activities)
        tally = tally_for(passes.gate, activities["target"])
    given = samples(rule, activities)
    learner = _Learner(rule, weight, state, scaling, passes.homeostasis, torch.zeros_like(weight))
    size = _norm(weight)
    most = passes.max_iterations if given.rows else 1
    converged = False
    iterations = 0
    while iterations < most and not converged and is_finite(learner.delta):
        iterations += 1
        start = learner.delta
        _one_pass(learner, given, activities, passes.batch_size, tally if iterations == 1 else None)
        converged = _norm(learner.delta - start) < passes.convergence_threshold * size
    if tally is not None and not given.rows and is_finite(learner.delta):
        scored = {name: activities[name] for name in SCORED}
        tally.add(scored["y"], _moved(scored, learner.delta), scored["target"])
    return Taught(
        learner.delta,
        learner.state,
        learner.scaling,
        learner.metrics,
        learner.proposals,
        iterations,
        converged,
        tally,
    )


def _one_pass(
    learner: _Learner, given: Samples, activities: Tensors, size: int, tally: Tally | None
) -> None:
    """All samples once; ends where the delta is not finite, which the guards are to see."""
    follows = follows_weight(learner.rule)
    for batch in given.batches(activities, size):
        moved = batch
        if given.rows and (follows or tally is not None):
            learnt = _moved(batch, learner.delta)
            if tally is not None:
                tally.add(batch["y"], learnt, batch["target"])
            if follows:
                moved = {**batch, "y": learnt}
                if not is_finite(learnt):
                    learner.delta = torch.full_like(learner.weight, torch.inf)
                    return
        learner.take(moved)
        if not is_finite(learner.delta):
            return


def _moved(batch: Tensors, delta: torch.Tensor) -> torch.Tensor:
    """What a linear layer answers once its weight has moved by `delta`."""
    return batch["y"] + batch["x"] @ delta.mT


def follows_weight(rule: Rule | type[Rule]) -> bool:
    """Whether the rule learns a linear readout: y is x Wᵀ (and a constant), as far as W goes."""
    return rule.parameter == MATRIX and {"x", "y", "target"} <= rule.activities.keys()


def scaling_state(homeostasis: SynapticScaling | None, weight: torch.Tensor) -> Tensors:
    """The state that scaling starts with."""
    return {} if homeostasis is None else init(homeostasis, weight)


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
