"""LoRA adapters as part of a model's state.

An adapter is some small matrices and a config, in PEFT's form (Hu et al. 2021, "LoRA"). In a state
its tensors stand beside the weights: `adapter/NAME/KEY` for each matrix, with PEFT's key, and
`adapter/NAME/config`, the UTF-8 bytes of its canonical JSON. So the state alone restores it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from weightledger.ledger.errors import CorruptLedger, InvalidRequest
from weightledger.ledger.events.canonical import canonical

PREFIX = "adapter/"

_CONFIG = "config"
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


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter: PEFT's adapter_config.json, and its matrices by PEFT's keys.

    `stored` are the tensors of a state that it was read from, by full name, or that it becomes.
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    stored: Mapping[str, torch.Tensor] = field(repr=False)

    @classmethod
    def new(
        cls, name: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> "Adapter":
        """One that is in no state yet; InvalidRequest for a config that is not plain JSON."""
        text = canonical(dict(config), param="adapter_config.json")
        stored = {place(name, key): tensor for key, tensor in tensors.items()}
        stored[place(name, _CONFIG)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return cls(name, config, tensors, stored)

    def same_tensors(self, other: "Adapter") -> bool:
        """Whether both are made of the very same tensor objects."""
        return self.stored.keys() == other.stored.keys() and all(
            tensor is other.stored[key] for key, tensor in self.stored.items()
        )


def place(name: str, key: str) -> str:
    """The full state name of an adapter's tensor."""
    return f"{PREFIX}{name}/{key}"


def names(auxiliary: Mapping[str, Any]) -> list[str]:
    """The adapters among the tensors beside the weights, by name."""
    return sorted({_split(full)[0] for full in auxiliary if full.startswith(PREFIX)})


def all_of(auxiliary: Mapping[str, torch.Tensor]) -> dict[str, Adapter]:
    """Every adapter of a state. CorruptLedger for one without a config that can be read."""
    stored: dict[str, dict[str, torch.Tensor]] = {}
    for full, tensor in auxiliary.items():
        if full.startswith(PREFIX):
            name, _ = _split(full)
            stored.setdefault(name, {})[full] = tensor
    return {name: _read(name, stored[name]) for name in sorted(stored)}


def _read(name: str, stored: Mapping[str, torch.Tensor]) -> Adapter:
    tensors = {_split(full)[1]: tensor for full, tensor in stored.items()}
    try:
        config = json.loads(tensors.pop(_CONFIG).numpy().tobytes())
    except (KeyError, ValueError) as error:
        raise CorruptLedger(f"adapter {name!r} has no config that can be read: {error!r}") from None
    return Adapter(name, config, tensors, stored)


def _split(full: str) -> tuple[str, str]:
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
