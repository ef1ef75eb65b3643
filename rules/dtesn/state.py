"""Where rules' states live in the ledger: tensors beside the weights, `rule/{parameter}/{stream}/…`

They are part of the model's state: an event moves them together with the weight, a rollback
restores them, a restart finds them. What a stream leaves behind is its own; no other stream reads
it. Names after the stream: `{rule id}.{tensor}`, `selector.{kind}` (JSON as bytes),
`rate_factor`, `reservoir`, and `activity.{name}` for activities that are kept.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from weightledger.rules.errors import RuleError

DEFAULT_STREAM = "default"
CONSOLIDATION = "@ewc"
"""The stream of a parameter's elastic weight consolidation, which all its streams share."""

RATE_FACTOR = "rate_factor"
RESERVOIR = "reservoir"
ACTIVITY = "activity."


def place(parameter: str, stream: str) -> str:
    """The prefix of one parameter's and stream's tensors."""
    return f"rule/{parameter}/{stream}/"


def check_stream(stream: Any) -> str:
    """A stream's name: 1 to 64 letters, digits, dots, dashes and underscores."""
    allowed = isinstance(stream, str) and 1 <= len(stream) <= 64
    if not allowed or not all(c.isascii() and (c.isalnum() or c in "._-") for c in stream):
        raise RuleError(
            "a stream's name has 1 to 64 letters, digits, dots, dashes and underscores, "
            f"got {stream!r:.80}",
            param="stream",
        )
    return str(stream)


def selector_name(selector: object) -> str:
    """Where a selector's state is kept; selectors of different kinds do not share one."""
    return f"selector.{type(selector).__name__}"


def under(auxiliary: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name[len(prefix) :]: t for name, t in auxiliary.items() if name.startswith(prefix)}


def rule_state(
    held: Mapping[str, torch.Tensor], rule_id: str, device: torch.device
) -> dict[str, torch.Tensor]:
    """A rule's state among a stream's tensors, on the weight's device; empty if there is none."""
    return {name: tensor.to(device) for name, tensor in under(held, f"{rule_id}.").items()}


def named(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as the ledger keeps them: with the prefix, on the CPU, nobody else's memory."""
    return {
        prefix + name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def as_tensor(value: Any) -> torch.Tensor:
    """JSON as a tensor of bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def from_tensor(tensor: torch.Tensor) -> Any:
    """The JSON that `as_tensor` was given."""
    return json.loads(bytes(tensor.tolist()))


def kept_activities(held: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The activities that the last event of a stream kept."""
    return under(held, ACTIVITY)


def removed(prefix: str, names: Iterable[str]) -> dict[str, torch.Tensor | None]:
    """Names with the prefix, each to be removed."""
    return dict.fromkeys((prefix + name for name in names), None)
