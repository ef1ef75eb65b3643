"""A plan: which values tensors are to have, worked out on the staged state and not yet recorded."""

from collections.abc import Mapping
from typing import Any

import msgspec
import torch

from weightledger.ledger import events
from weightledger.ledger.codecs.factors import Factors
from weightledger.ledger.writing.given import Given
from weightledger.ledger.writing.policy import UNJUDGED, Verdict


class Write(msgspec.Struct, frozen=True):
    """A tensor's new value, `after`.

    `positions` are ascending flat positions outside of which nothing was written; None has every
    element compared. With `factors`, which led to it, these are what is stored. With `source`,
    `after` is filled from it: both are contiguous, on the CPU.
    """

    after: torch.Tensor
    positions: torch.Tensor | None = None
    factors: Factors | None = None
    source: torch.Tensor | None = None


class Plan(msgspec.Struct, frozen=True):
    """What one state-changing event is to do, worked out on the staged state.

    `facts` go into the event's body. `weights` maps bare names to new values; `auxiliary` maps
    full names outside of the weights (`rule/…`, `adapter/…`) to tensors, None to remove one.
    `verdict` is what was found before the guard is asked; one with a reason refuses the plan.
    `given` is what works it out again, None where its values came ready from elsewhere.
    """

    facts: Mapping[str, Any]
    weights: Mapping[str, Write] = msgspec.field(default_factory=dict)
    auxiliary: Mapping[str, torch.Tensor | None] = msgspec.field(default_factory=dict)
    kind: str = events.UPDATED
    verdict: Verdict = UNJUDGED
    given: Given | None = None
