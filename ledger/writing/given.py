"""What a plan was worked out from: operands by name, and what was asked beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch

from weightledger.ledger.writing.requests import Update


class Given(msgspec.Struct, frozen=True):
    """All that makes a plan again, beside the state it is worked out on and the event's facts.

    `asked` is JSON. With `always` it is kept whatever its size.
    """

    tensors: Mapping[str, torch.Tensor] = msgspec.field(default_factory=dict)
    asked: Mapping[str, Any] = msgspec.field(default_factory=dict)
    always: bool = False


def operands_of(updates: Sequence[Update]) -> Given:
    """Those of updates, each name begun with the update's number."""
    tensors: dict[str, torch.Tensor] = {}
    for number, update in enumerate(updates):
        if update.factors is not None:
            tensors[f"{number}/a"], tensors[f"{number}/b"] = update.factors.a, update.factors.b
            continue
        assert update.operand is not None
        tensors[f"{number}/operand"] = update.operand
        if update.indices is not None:
            tensors[f"{number}/indices"] = update.indices
    return Given(tensors)
