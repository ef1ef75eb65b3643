"""Modules that run a base through a LoRA adapter, made by peft.

peft rewrites a module in place, so it gets one made of stand-ins without data; versions are copies
of what it made, with the live tensors in their places. Tensors of the base are shared between its
own module and those of all adapters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model

from weightledger.ledger.adapters.adapter import Adapter
from weightledger.ledger.adapters.fit import Target, targets
from weightledger.ledger.engines import copying
from weightledger.ledger.engines.naming import Naming, of_module
from weightledger.ledger.errors import InvalidRequest

# A name inside of the module only; peft's may hold no dot, ours may.
_INNER = "default"

_FOLLOWED = [
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
]


class AdaptedSkeleton:
    """The structure of a base with one adapter, and that adapter's matrices.

    Half-precision matrices are used in float32, as `PeftModel` does by default.
    Raises InvalidRequest for an adapter that does not fit the base.
    """

    def __init__(self, adapter: Adapter, base: copying.Skeleton, naming: Naming) -> None:
        self.adapter = adapter
        wanted = targets(adapter, naming.specs, naming.aliases)
        with torch.inference_mode(False), torch.no_grad():
            stand_ins = {name: copying.stand_in(t) for name, t in naming.tensors.items()}
            module = base.build(stand_ins)
            layers = _injected(module, adapter.config, {target.module for target in wanted})
            for target in wanted:
                _fill(layers[target.module], target)
            given = of_module(module)
            self._skeleton = copying.Skeleton(module, given)
        names = {id(stand_in): name for name, stand_in in stand_ins.items()}
        self._shared = {key: names[id(t)] for key, t in given.tensors.items() if id(t) in names}
        self._own = {key: t for key, t in given.tensors.items() if id(t) not in names}

    def build(self, tensors: Mapping[str, torch.Tensor]) -> "AdaptedModule":
        """A module with these tensors of the base, by bare name."""
        shared = {key: tensors[name] for key, name in self._shared.items()}
        return AdaptedModule(self, self._skeleton.build({**shared, **self._own}))


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """One version of the base through an adapter, and what the next one is built from."""

    skeleton: AdaptedSkeleton
    module: torch.nn.Module


def _injected(module: torch.nn.Module, config: Mapping[str, Any], wanted: set[str]) -> Any:
    """The layers that peft puts in, by name; exactly those that the adapter has matrices for."""
    chosen = {name: config[name] for name in _FOLLOWED if config.get(name) is not None}
    try:
        # The matrices are of no use before they are filled, and random numbers belong to others.
        inject_adapter_in_model(
            LoraConfig(**chosen, inference_mode=True),
            module,
            adapter_name=_INNER,
            low_cpu_mem_usage=True,
        )
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        raise InvalidRequest(
            f"the adapter does not fit the model: {error}", param="lora_path"
        ) from error
    layers = {name: part for name, part in module.named_modules() if hasattr(part, "lora_A")}
    if layers.keys() != wanted:
        odd = sorted(layers.keys() ^ wanted)
        raise InvalidRequest(
            "the adapter's target_modules and its matrices name other modules: "
            f"{', '.join(odd[:4])}",
            param="lora_path",
        )
    return layers


def _fill(layer: Any, target: Target) -> None:
    for part, matrix in ((layer.lora_A, target.a), (layer.lora_B, target.b)):
        dtype = matrix.dtype if matrix.itemsize > 2 else torch.float32
        placed = matrix.to(device=layer.weight.device, dtype=dtype)
        part[_INNER].weight = torch.nn.Parameter(placed, requires_grad=False)
