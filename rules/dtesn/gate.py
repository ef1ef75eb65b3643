"""Score, then learn: whether a window of samples made the weight better on samples it had not seen.

Each sample of the window is first answered by the live weight and by the one that has learnt from
the samples before it; then it is learnt from. At the end a paired sign test decides whether what
was learnt replaces the live weight.

The sign test, and not the more powerful signed-rank test, because the samples are not independent
of each other here: how far the two answers are apart depends on how the samples before came out.
Whatever was learnt before, a sample is answered better with a chance of at most one half where
learning does not help, so the number of better answers is at most binomial, and the level exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from weightledger import sign_test
from weightledger.rules.checking import is_finite
from weightledger.rules.errors import RuleError
from weightledger.rules.ranges import check_choice, check_ranges

SCORED = ("x", "y", "target")
"""What a gate scores with: the layer's input, its output and what that should have been."""


@dataclass(frozen=True, slots=True)
class PairedGate:
    """`require` "better" adopts a window only with evidence for it; "not worse" unless there is
    evidence against it. `alpha` is the one-sided level.

    `score` says what of two answers to a sample is the better one. "answers": the right one, whose
    largest output is the target's largest. "loss": the one with the smaller Σ (target − y)²; then
    "better" asks for a smaller mean as well. "auto": answers where every target is one 1 and
    otherwise 0s, of two or more; else loss, as for regression.
    """

    require: Literal["better", "not worse"] = "better"
    alpha: float = 0.05
    score: Literal["auto", "answers", "loss"] = "auto"

    def __post_init__(self) -> None:
        check_ranges(self, fraction=["alpha"])
        check_choice("require", self.require, ("better", "not worse"))
        check_choice("score", self.score, ("auto", "answers", "loss"))


@dataclass(slots=True)
class Tally:
    """Answers of the live weight and of the learning one, sample by sample.

    `before` and `after` sum up what is scored: right answers, or losses.
    """

    score: Literal["answers", "loss"]
    items: int = 0
    before: float = 0.0
    after: float = 0.0
    better: int = 0
    worse: int = 0

    def add(self, live: torch.Tensor, learnt: torch.Tensor, target: torch.Tensor) -> None:
        """Outputs and targets, [batch, out]; an answer that is not finite is the worst there is."""
        before, after = (self._costs(answer, target) for answer in (live, learnt))
        self.items += len(target)
        self.better += int((after < before).sum())
        self.worse += int((after > before).sum())
        if self.score == "answers":
            before, after = 1 - before, 1 - after
        self.before += float(before.sum())
        self.after += float(after.sum())

    def _costs(self, answer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """What an answer costs, [batch]: 1 if it is wrong, or its loss."""
        finite = answer.isfinite().all(1)
        if self.score == "answers":
            return 1 - (finite & (answer.argmax(1) == target.argmax(1))).double()
        loss = (target.double() - answer.double()).square().sum(1)
        return loss.masked_fill(~finite, torch.inf)

    def evidence(self) -> dict[str, Any]:
        """What was counted, as JSON."""
        sums: dict[str, float | None]
        if self.score == "answers":
            sums = {"right_before": int(self.before), "right_after": int(self.after)}
        else:
            sums = {
                name: None if not torch.inf > total else total / max(1, self.items)
                for name, total in (("loss_before", self.before), ("loss_after", self.after))
            }
        return {
            "score": self.score,
            "items": self.items,
            **sums,
            "better": self.better,
            "worse": self.worse,
            "p_better": sign_test(self.better, self.worse),
            "p_worse": sign_test(self.worse, self.better),
        }

    def refusal(self, gate: PairedGate) -> str | None:
        """Why the window is not adopted; None adopts it."""
        if gate.require == "better":
            refused = sign_test(self.better, self.worse) > gate.alpha
            refused |= self.score == "loss" and not self.after < self.before
        else:
            refused = sign_test(self.worse, self.better) <= gate.alpha
        if not refused:
            return None
        mean = ""
        if self.score == "loss":
            means = (total / max(1, self.items) for total in (self.before, self.after))
            mean = ", mean loss {:.6g} → {:.6g}".format(*means)
        return (
            f"of {self.items} samples {self.better} were answered better and {self.worse} worse"
            f"{mean}, required: {gate.require} at {gate.alpha:g}"
        )


def tally_for(gate: PairedGate, target: torch.Tensor) -> Tally:
    """An empty tally of what the gate scores, `target` [batch, out].

    RuleError where right answers are asked for and the targets do not say which is right.
    """
    if gate.score == "loss":
        return Tally("loss")
    if gate.score == "auto":
        return Tally("answers" if _one_hot(target) else "loss")
    largest = target == target.max(1, keepdim=True).values
    if target.shape[1] < 2 or bool((largest.sum(1) > 1).any()):
        raise RuleError(
            "answers are right where the largest of two or more outputs is the target's: these "
            f"targets are {list(target.shape)} and have no single largest each; score by loss",
            param="gate",
        )
    return Tally("answers")


def _one_hot(target: torch.Tensor) -> bool:
    ones = target == 1
    whole = bool((ones | (target == 0)).all()) and bool((ones.sum(1) == 1).all())
    return whole and target.shape[1] > 1


def check_scored(weight: torch.Tensor, activities: Mapping[str, torch.Tensor]) -> None:
    """RuleError unless x is [batch, in] and y and target [batch, out] of a weight [out, in]."""
    if missing := [name for name in SCORED if name not in activities]:
        raise RuleError(
            f"a gated call needs the activities x, y and target; missing: {', '.join(missing)}",
            param=missing[0],
        )
    if weight.ndim != 2:
        raise RuleError(
            f"a gate scores layers with a weight [out, in], this one is {tuple(weight.shape)}",
            param="gate",
        )
    count = len(activities["x"]) if activities["x"].ndim else 0
    for name, width in (
        ("x", weight.shape[1]),
        ("y", weight.shape[0]),
        ("target", weight.shape[0]),
    ):
        tensor = activities[name]
        if not count or tensor.shape != (count, width):
            raise RuleError(
                f"a gate scores samples of {name} [batch, {width}], as many as of x, got "
                f"{tuple(tensor.shape)}",
                param=name,
            )
        if not is_finite(tensor):
            raise RuleError(f"activity {name!r} has values that are not finite", param=name)
