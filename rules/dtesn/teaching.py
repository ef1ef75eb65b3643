"""One call's learning, pure: a weight, activities and states in; a delta and next states out.

The activities are taken in batches, each proposed on what the ones before it made. It is computed
again from recorded activities by `rules.dtesn.recomputing`, so all it depends on is passed in.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from rules.checking import init, is_finite, propose
from rules.dtesn.gate import PairedGate, Tally
from rules.errors import RuleError
from rules.homeostasis import SynapticScaling
from rules.protocol import ANY_SHAPE, MATRIX, Rule

ROWS = ("batch", "time")
"""First dimensions that are counted in samples."""

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
    """Learn from `activities`: those the rule wants, and `target` where a gate is to score.

    A rule with a target learns a linear readout, so its y follows the weight within the call:
    y + x Δᵀ. Other rules' activities are what was observed, and stay. Raises what
    `rules.propose` raises.
    """
    rows = _rows(rule, activities)
    for name, tensor in activities.items():  # all of them, before any is learnt from
        if not is_finite(tensor):
            raise RuleError(f"activity {name!r} has values that are not finite", param=name)
    learner = _Learner(rule, weight, state, scaling, passes.homeostasis, torch.zeros_like(weight))
    follows = follows_weight(rule)
    tally = Tally() if passes.gate is not None else None
    if tally is not None and not {"x", "y", "target"} <= activities.keys():
        raise RuleError("a gated call needs the activities x, y and target", param="target")
    size = _norm(weight)
    most = passes.max_iterations if rows else 1
    converged = False
    iterations = 0
    while iterations < most and not converged:
        iterations += 1
        start = learner.delta
        for batch in _batches(activities, rows, passes.batch_size):
            moved = batch
            if follows or tally is not None:
                learnt = batch["y"] + batch["x"] @ learner.delta.mT
                if tally is not None and iterations == 1:
                    tally.add(batch["y"], learnt, batch["target"])
                if follows:
                    moved = {**batch, "y": learnt}
                    if not is_finite(learnt):
                        learner.delta = torch.full_like(weight, torch.inf)
                        break
            learner.take(moved)
            if not is_finite(learner.delta):  # the guards say so; nothing follows from it
                break
        if not is_finite(learner.delta):
            break
        converged = _norm(learner.delta - start) < passes.convergence_threshold * size
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


def follows_weight(rule: Rule | type[Rule]) -> bool:
    """Whether the rule learns a linear readout: y is x Wᵀ (and a constant), as far as W goes."""
    return rule.parameter == MATRIX and {"x", "y", "target"} <= rule.activities.keys()


def scaling_state(homeostasis: SynapticScaling | None, weight: torch.Tensor) -> Tensors:
    """The state that scaling starts with."""
    return {} if homeostasis is None else init(homeostasis, weight)


def _rows(rule: Rule, activities: Tensors) -> dict[str, int]:
    """Samples in each activity that is counted in samples; all have as many."""
    counted = {
        name: len(activities[name])
        for name, activity in rule.activities.items()
        if name in activities
        and activity.shape != ANY_SHAPE
        and activity.shape[:1] in {(row,) for row in ROWS}
        and activities[name].ndim
    }
    if counted:
        for name in ("x", "y", "target"):  # what a gate scores with
            if name in activities and activities[name].ndim:
                counted.setdefault(name, len(activities[name]))
    if len(set(counted.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counted.items())
        raise RuleError(
            f"activities have as many samples each, got {said}", param=next(iter(counted))
        )
    if 0 in counted.values():
        raise RuleError("activities are empty: there are no samples", param=next(iter(counted)))
    return counted


def _batches(activities: Tensors, rows: Mapping[str, int], size: int) -> Iterator[Tensors]:
    if not rows:
        yield activities
        return
    total = next(iter(rows.values()))
    for start in range(0, total, size):
        yield {
            name: tensor[start : start + size] if name in rows else tensor
            for name, tensor in activities.items()
        }


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
