"""Does an adapter fit a model: which weights it changes, by which rank and scale.

What is not understood is refused, so that nothing of an adapter is left out silently.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from weightledger.ledger.adapters.adapter import Adapter
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.tensors.lanes import finite
from weightledger.ledger.tensors.spec import TensorSpec

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")

# Fields of adapter_config.json that are followed, and those that mean nothing at inference.
_FOLLOWED = frozenset(
    [
        "peft_type",
        "r",
        "lora_alpha",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "init_lora_weights",
    ]
)
_WITHOUT_EFFECT = frozenset(
    [
        "base_model_name_or_path",
        "revision",
        "task_type",
        "auto_mapping",
        "peft_version",
        "inference_mode",
        "lora_dropout",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "runtime_config",
        "megatron_config",
        "megatron_core",
        "qalora_group_size",
        "ensure_weight_tying",
    ]
)
_NEUTRAL: tuple[Any, ...] = (None, False, [], {}, "none")

# Others take a part of the base's weights into the adapter, and mean another base with it.
_INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")

_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Target:
    """One weight that an adapter changes by `scale · b @ a`.

    `a` is [rank, columns] and `b` [rows, rank], for the weight `weight` [rows, columns].
    """

    module: str
    weight: str
    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def targets(
    adapter: Adapter, specs: Mapping[str, TensorSpec], aliases: Mapping[str, str]
) -> list[Target]:
    """What the adapter changes, by bare names of a model's tensors, in their order.

    Raises InvalidRequest for a kind of adapter that is not LoRA on linear layers, for a module
    that the model does not have, and for matrices of another shape or that are not finite.
    """
    _check_config(adapter.config)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in adapter.tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise _unfit(
                f"has a tensor {key!r}; expected base_model.model.MODULE.lora_A.weight and "
                "lora_B.weight of linear layers"
            )
        parts.setdefault(match["module"], {})[match["part"]] = tensor
    if not parts:
        raise _unfit("has no tensors")
    return [_target(adapter, name, parts[name], specs, aliases) for name in sorted(parts)]


def _target(
    adapter: Adapter,
    module: str,
    parts: Mapping[str, torch.Tensor],
    specs: Mapping[str, TensorSpec],
    aliases: Mapping[str, str],
) -> Target:
    if set(parts) != {"A", "B"}:
        raise _unfit(
            f"has lora_{'A' if 'A' in parts else 'B'} of {module!r} without its other half"
        )
    weight = f"{module}.weight"
    spec = specs.get(aliases.get(weight, weight))
    if spec is None:
        raise _unfit(f"is for a module {module!r}, which the model does not have")
    a, b = parts["A"], parts["B"]
    rank = _of_pattern(adapter.config, "rank_pattern", module, adapter.config["r"])
    wanted = ((rank, spec.shape[-1]), (spec.shape[0], rank)) if len(spec.shape) == 2 else None
    if spec.element.kind != "float" or wanted != (tuple(a.shape), tuple(b.shape)):
        raise _unfit(
            f"has lora_A {list(a.shape)} and lora_B {list(b.shape)} for {weight!r}, which is "
            f"{spec.dtype} {list(spec.shape)}; expected [{rank}, columns] and [rows, {rank}], "
            f"since the config says rank {rank}"
        )
    for part in (a, b):
        if not part.is_floating_point() or part.itemsize == 1 or not finite(part):
            raise _unfit(f"has values of {module!r} that are not finite floats ({part.dtype})")
    alpha = _of_pattern(adapter.config, "alpha_pattern", module, adapter.config["lora_alpha"])
    divisor = math.sqrt(rank) if adapter.config.get("use_rslora") else rank
    return Target(module, weight, a, b, alpha / divisor)


def _of_pattern(config: Mapping[str, Any], pattern: str, module: str, default: Any) -> Any:
    """The value for a module: that of the first pattern which its name ends with, as in PEFT."""
    for key, value in (config.get(pattern) or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _check_config(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise _unfit(f"has peft_type {config.get('peft_type')!r}; expected LORA")
    ranks = {"r": config.get("r"), **_pattern(config, "rank_pattern")}
    for name, rank in ranks.items():
        if type(rank) is not int or rank < 1:
            raise _unfit(f"has rank {rank!r} for {name!r}; expected a whole number from 1")
    alphas = {"lora_alpha": config.get("lora_alpha"), **_pattern(config, "alpha_pattern")}
    for name, alpha in alphas.items():
        if type(alpha) not in (int, float) or not math.isfinite(alpha):
            raise _unfit(f"has alpha {alpha!r} for {name!r}; expected a number")
    if config.get("init_lora_weights", True) not in _INITIAL:
        raise _unfit(
            f"has init_lora_weights {config['init_lora_weights']!r}, which means another base; "
            "convert it to a plain LoRA when saving it"
        )
    odd = sorted(
        f"{name}={value!r:.40}"
        for name, value in config.items()
        if name not in _FOLLOWED | _WITHOUT_EFFECT and value not in _NEUTRAL
    )
    if odd:
        raise _unfit(f"asks for what is not supported: {', '.join(odd[:_SHOWN])}")


def _pattern(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    pattern = config.get(name) or {}
    if not isinstance(pattern, dict):
        raise _unfit(f"has a {name} that is not a JSON object")
    for key in pattern:
        try:
            re.compile(key)
        except re.error as error:
            raise _unfit(f"has a {name} that cannot be read: {error}") from None
    return pattern


def _unfit(why: str) -> InvalidRequest:
    return InvalidRequest(f"the adapter {why}", param="lora_path")
