"""LoRA adapters as part of a model's state.

An adapter is some small matrices and a config, in PEFT's form (Hu et al. 2021, "LoRA"). In a state
its tensors stand beside the weights: `adapter/NAME/KEY` for each matrix, with PEFT's key, and
`adapter/NAME/config`, the UTF-8 bytes of its canonical JSON. So the state alone restores it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weightledger.ledger.errors import InvalidRequest

PREFIX = "adapter/"

MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class LoRAConfig:
    """Limits for adapters: how many may be loaded at a time, and the largest rank of each."""

    max_loras: int = 1
    max_lora_rank: int = 16

    def __post_init__(self) -> None:
        for name in ("max_loras", "max_lora_rank"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} must be at least 1", param=name)


def place(name: str, key: str) -> str:
    """The full state name of an adapter's tensor."""
    return f"{PREFIX}{name}/{key}"


def names(auxiliary: Mapping[str, Any]) -> list[str]:
    """The adapters among the tensors beside the weights, by name."""
    return sorted({split(full)[0] for full in auxiliary if full.startswith(PREFIX)})


def split(full: str) -> tuple[str, str]:
    """An adapter's name and its tensor's key, of a full state name."""
    name, _, key = full.removeprefix(PREFIX).partition("/")
    return name, key


def check_name(name: object, model: str) -> str:
    """`name`, if an adapter of that model may have it; InvalidRequest otherwise."""
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or not name.strip():
        raise InvalidRequest(
            f"lora_name must be a string of 1 to {MAX_NAME} characters, got {name!r:.80}",
            param="lora_name",
        )
    if "/" in name or not name.isprintable() or name in (".", ".."):
        raise InvalidRequest(
            f"lora_name must have no slash and no control characters, got {name!r}",
            param="lora_name",
        )
    if name == model:
        raise InvalidRequest(
            f"lora_name {name!r} is the name of the model itself", param="lora_name"
        )
    return name
