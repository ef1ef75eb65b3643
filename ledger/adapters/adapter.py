"""One adapter as tensors of a state, read from them and made into them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from weightledger.ledger.adapters import PREFIX, place, split
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events.canonical import canonical

_CONFIG = "config"


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


def all_of(auxiliary: Mapping[str, torch.Tensor]) -> dict[str, Adapter]:
    """Every adapter of a state. CorruptLedger for one without a config that can be read."""
    stored: dict[str, dict[str, torch.Tensor]] = {}
    for full, tensor in auxiliary.items():
        if full.startswith(PREFIX):
            name, _ = split(full)
            stored.setdefault(name, {})[full] = tensor
    return {name: _read(name, stored[name]) for name in sorted(stored)}


def _read(name: str, stored: Mapping[str, torch.Tensor]) -> Adapter:
    tensors = {split(full)[1]: tensor for full, tensor in stored.items()}
    try:
        config = json.loads(tensors.pop(_CONFIG).numpy().tobytes())
    except (KeyError, ValueError) as error:
        raise CorruptLedger(f"adapter {name!r} has no config that can be read: {error!r}") from None
    return Adapter(name, config, tensors, stored)
