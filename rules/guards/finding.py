"""What every guard is: a function from the live weight and a proposal to a finding."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from weightledger.rules.protocol import Proposal


@dataclass(frozen=True, slots=True)
class Finding:
    """What one guard says. `delta` is what to go on with; `reason` None accepts."""

    delta: torch.Tensor
    evidence: Mapping[str, Any]
    reason: str | None = None


class Guard(Protocol):
    """Judges one step of one parameter; writes to nothing."""

    def __call__(self, weight: torch.Tensor, proposal: Proposal) -> Finding:
        """The finding for `proposal`, whose delta may have been changed by the guards before."""


def json_number(value: float) -> float | None:
    """The value for an event's evidence, which is JSON: None for NaN and infinity."""
    return value if math.isfinite(value) else None
