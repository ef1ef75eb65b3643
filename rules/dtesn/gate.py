"""Score, then learn: whether a window of samples made the weight better on samples it had not seen.

Each sample of the window is first answered by the live weight and by the one that has learnt from
the samples before it; then it is learnt from. At the end a paired sign test decides whether what
was learnt replaces the live weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from weightledger.rules.checking import is_finite
from weightledger.rules.errors import RuleError
from weightledger.rules.guards import sign_test
from weightledger.rules.ranges import check_ranges

SCORED = ("x", "y", "target")
"""What a gate scores with: the layer's input, its output and what that should have been."""


@dataclass(frozen=True, slots=True)
class PairedGate:
    """`require` "better" adopts a window only with evidence for it; "not worse" unless there is
    evidence against it. `alpha` is the one-sided exact level.
    """

    require: Literal["better", "not worse"] = "better"
    alpha: float = 0.05

    def __post_init__(self) -> None:
        check_ranges(self, fraction=["alpha"])
        if self.require not in ("better", "not worse"):
            raise RuleError(
                f"require is one of better, not worse, got {self.require!r}", param="require"
            )


@dataclass(slots=True)
class Tally:
    """Answers of the live weight and of the learning one, sample by sample; an answer is right
    when its largest output is the target's."""

    items: int = 0
    right_before: int = 0
    right_after: int = 0
    better: int = 0
    worse: int = 0

    def add(self, live: torch.Tensor, learnt: torch.Tensor, target: torch.Tensor) -> None:
        """Outputs and targets, [batch, out]."""
        wanted = target.argmax(1)
        before, after = live.argmax(1) == wanted, learnt.argmax(1) == wanted
        self.items += len(wanted)
        self.right_before += int(before.sum())
        self.right_after += int(after.sum())
        self.better += int((after & ~before).sum())
        self.worse += int((before & ~after).sum())

    def evidence(self) -> dict[str, Any]:
        """What was counted, as JSON."""
        return {
            "items": self.items,
            "right_before": self.right_before,
            "right_after": self.right_after,
            "better": self.better,
            "worse": self.worse,
            "p_better": sign_test(self.better, self.worse),
            "p_worse": sign_test(self.worse, self.better),
        }

    def refusal(self, gate: PairedGate) -> str | None:
        """Why the window is not adopted; None adopts it."""
        if gate.require == "better":
            refused = sign_test(self.better, self.worse) > gate.alpha
        else:
            refused = sign_test(self.worse, self.better) <= gate.alpha
        if not refused:
            return None
        return (
            f"of {self.items} samples {self.better} were answered better and {self.worse} worse, "
            f"required: {gate.require} at {gate.alpha:g}"
        )


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
