"""What every learning rule is: a small frozen dataclass, its config, and two pure functions.

A rule's fields are its hyperparameters. `init` makes the state that a parameter starts with;
`propose` turns activities and state into a step and the next state. Nothing is written to, and
nothing random happens: noise is an activity, drawn by the caller from a seed of its own.

Conventions that all rules keep:

- A weight is [out, in]; a batch of activities is [batch, …], and its rows are consecutive in time
  wherever a rule has memory. Rate rules average over the batch; spike rules and sums of rewards
  add up over it, since each row is a time step.
- The learning rate is applied once, in the rule: the delta is added to the weight as it is.
- Arithmetic is in the weight's dtype, float32 or float64, on the weight's device.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch

Shape = tuple[str | int, ...]
"""Dimensions by name, such as ("batch", "out"), or fixed numbers; () is a single number."""

ANY_SHAPE: Shape = ("...",)
"""A parameter of any shape, or an activity with the parameter's shape."""

MATRIX: Shape = ("out", "in")


@dataclass(frozen=True, slots=True)
class Activity:
    """One tensor that a rule wants: its dimensions and what it means."""

    shape: Shape
    meaning: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a rule suggests for one parameter.

    `delta` has the parameter's shape and is added to it; `state` holds the rule's tensors after
    the step, by name; `metrics` are numbers worth keeping with the event.
    """

    delta: torch.Tensor
    state: Mapping[str, torch.Tensor]
    metrics: Mapping[str, float] = field(default_factory=dict)


class Rule(Protocol):
    """A learning rule, implemented by a frozen dataclass.

    `id` is permanent; `version` rises when results change. The methods are called through
    `rules.init` and `rules.propose`, which check what goes in, so they contain arithmetic only.
    """

    id: ClassVar[str]
    version: ClassVar[int]
    summary: ClassVar[str]
    parameter: ClassVar[Shape]
    activities: ClassVar[Mapping[str, Activity]]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def init(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """The state before the first proposal for a parameter like `weight`.

        Shapes and dtypes may depend on the weight's only: this runs on meta tensors too.
        """

    def propose(
        self,
        weight: torch.Tensor,
        activities: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
    ) -> Proposal:
        """A step for `weight` from checked activities and state; none of them is written to."""
