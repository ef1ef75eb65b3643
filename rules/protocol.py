"""What every learning rule is: a pure function from activities and state to a proposal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


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
    """A learning rule. `id` is permanent; `version` rises when its results change."""

    id: str
    version: int

    def propose(
        self,
        weight: torch.Tensor,
        activities: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
        config: Mapping[str, Any],
    ) -> Proposal:
        """Propose a step for `weight`, shape [out, in]; nothing passed in is written to.

        `activities` holds tensors such as x [batch, in] and y [batch, out]; `state` is what the
        last proposal for this parameter and stream returned, or empty.
        """
