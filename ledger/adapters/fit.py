"""Does an adapter fit a model: which weights it changes, by which rank and scale.

What is not understood is refused, so that nothing of an adapter is left out silently.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weightledger.ledger.adapters.adapter import Adapter
from weightledger.ledger.adapters.patterns import Targeting
from weightledger.ledger.codecs.factors import working_dtype
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.tensors.lanes import finite
from weightledger.ledger.tensors.spec import TensorSpec

_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<part>[AB])(?P<tail>\.weight)?"
)

# PEFT saves the weights of embeddings and heads that have an adapter along with it.
_BASE = re.compile(r"base_model\.model\.(?P<module>.+)\.base_layer\.weight")

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

# `fan_in_fan_out` is among the latter: PEFT goes by the kind of the module, whatever it says.
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
        "fan_in_fan_out",
    ]
)
_NEUTRAL: tuple[Any, ...] = (None, False, [], {}, "none")

# Others take a part of the base's weights into the adapter, and mean another base with it.
_INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")

_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Target:
    """One weight that an adapter changes by `scale · B @ A`, seen as [outputs, inputs].

    `a` and `b` are the keys of its matrices, A [rank, inputs] and B [outputs, rank]. `embedding`
    says that the module looks rows up, so that `weight` is [inputs, outputs]. `dtype` is what the
    matrices are calculated with: the weight's, or float32 for halves, as `PeftModel` does.
    """

    module: str
    weight: str
    a: str
    b: str
    rank: int
    scale: float
    embedding: bool
    dtype: torch.dtype

    def matrices(self, adapter: Adapter) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B, as they are calculated with."""
        return adapter.tensors[self.a].to(self.dtype), adapter.tensors[self.b].to(self.dtype)

    def delta(
        self, adapter: Adapter, *, transposed: bool, weight_dtype: torch.dtype
    ) -> torch.Tensor:
        """What merging adds to the weight, by the operations of PEFT's `get_delta_weight`.

        `transposed` says that the weight is [inputs, outputs]. What is added to an embedding is
        rounded to its dtype before, as PEFT does there and not with linear layers.
        """
        a, b = self.matrices(adapter)
        product = b @ a
        delta = (product.T if transposed else product) * self.scale
        return delta.to(weight_dtype) if self.embedding else delta


def targets(
    config: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    specs: Mapping[str, TensorSpec],
    aliases: Mapping[str, str],
) -> list[Target]:
    """What an adapter changes, by bare names of a model's tensors, in the order of its modules.

    `shapes` are those of its tensors, by PEFT's key. Raises InvalidRequest for a kind of adapter
    that is not LoRA on linear layers, Conv1D and embeddings, for a module that the model does not
    have, and for matrices of another shape.
    """
    _check_config(config)
    targeting = Targeting.of(config)
    parts: dict[str, dict[str, str]] = {}
    kinds: dict[str, bool] = {}
    for key in shapes:
        match = _KEY.fullmatch(key)
        if match is None and _BASE.fullmatch(key):
            continue
        if match is None or bool(match["kind"]) == bool(match["tail"]):
            raise _unfit(
                f"has a tensor {key!r:.200}; expected base_model.model.MODULE.lora_A.weight and "
                "lora_B.weight of linear layers, or lora_embedding_A and _B of embeddings"
            )
        module, embedding = match["module"], bool(match["kind"])
        if kinds.setdefault(module, embedding) != embedding:
            raise _unfit(f"has matrices of two kinds for {module!r:.200}")
        parts.setdefault(module, {})[match["part"]] = key
    if not parts:
        raise _unfit("has no tensors")
    fitting = [
        _target(targeting, config, module, kinds[module], parts[module], shapes, specs, aliases)
        for module in sorted(parts)
    ]
    _check_base(shapes, {target.module: target for target in fitting}, specs, aliases)
    return fitting


def base_weights(shapes: Mapping[str, Any]) -> dict[str, str]:
    """The keys under which an adapter repeats weights of its base, by those weights' names."""
    matches = ((key, _BASE.fullmatch(key)) for key in shapes)
    return {key: f"{match['module']}.weight" for key, match in matches if match}


def check_values(adapter: Adapter) -> None:
    """InvalidRequest unless all of an adapter's matrices are finite floats."""
    for key, tensor in adapter.tensors.items():
        if not tensor.is_floating_point() or tensor.itemsize == 1 or not finite(tensor):
            raise _unfit(f"has values in {key!r} that are not finite floats ({tensor.dtype})")


def _target(
    targeting: Targeting,
    config: Mapping[str, Any],
    module: str,
    embedding: bool,
    parts: Mapping[str, str],
    shapes: Mapping[str, Sequence[int]],
    specs: Mapping[str, TensorSpec],
    aliases: Mapping[str, str],
) -> Target:
    if set(parts) != {"A", "B"}:
        raise _unfit(
            f"has lora_{'A' if 'A' in parts else 'B'} of {module!r:.200} without its other half"
        )
    weight = f"{module}.weight"
    spec = specs.get(aliases.get(weight, weight))
    if spec is None:
        raise _unfit(
            f"is for a module {module!r:.200}, which the model does not have, or which has no "
            "weight of its own"
        )
    a, b = list(shapes[parts["A"]]), list(shapes[parts["B"]])
    rank = targeting.rank_of(module)
    sides = [len(b) == 2 and b[0], len(a) == 2 and a[1]]
    fits = a[:1] == b[1:] == [rank] and list(spec.shape) in (
        [sides[::-1]] if embedding else [sides, sides[::-1]]
    )
    if spec.element.kind != "float" or not fits:
        raise _unfit(
            f"has lora_A {a} and lora_B {b} for {weight!r}, which is {spec.dtype} "
            f"{list(spec.shape)}; expected [{rank}, inputs] and [outputs, {rank}], since the "
            f"config says rank {rank}"
        )
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    scale = targeting.alpha_of(module) / divisor
    return Target(
        module, weight, parts["A"], parts["B"], rank, scale, embedding, working_dtype(spec)
    )


def _check_base(
    shapes: Mapping[str, Sequence[int]],
    changed: Mapping[str, Target],
    specs: Mapping[str, TensorSpec],
    aliases: Mapping[str, str],
) -> None:
    for key, weight in base_weights(shapes).items():
        spec = specs.get(aliases.get(weight, weight))
        module = weight.removesuffix(".weight")
        if module not in changed or spec is None or tuple(shapes[key]) != spec.shape:
            raise _unfit(f"has a tensor {key!r:.200} that is no weight of a module it changes")


def _check_config(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise _unfit(f"has peft_type {config.get('peft_type')!r:.80}; expected LORA")
    ranks = {"r": config.get("r"), **_values(config, "rank_pattern")}
    for name, rank in ranks.items():
        if type(rank) is not int or rank < 1:
            raise _unfit(f"has rank {rank!r:.80} for {name!r:.80}; expected a whole number from 1")
    alphas = {"lora_alpha": config.get("lora_alpha"), **_values(config, "alpha_pattern")}
    for name, alpha in alphas.items():
        if type(alpha) not in (int, float) or not math.isfinite(alpha):
            raise _unfit(f"has alpha {alpha!r:.80} for {name!r:.80}; expected a number")
    if config.get("init_lora_weights", True) not in _INITIAL:
        raise _unfit(
            f"has init_lora_weights {config['init_lora_weights']!r:.80}, which means another base; "
            "convert it to a plain LoRA when saving it"
        )
    odd = sorted(
        f"{name:.80}={value!r:.40}"
        for name, value in config.items()
        if name not in _FOLLOWED | _WITHOUT_EFFECT and value not in _NEUTRAL
    )
    if odd:
        raise _unfit(f"asks for what is not supported: {', '.join(odd[:_SHOWN])}")


def _values(config: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = config.get(field) or {}
    return value if isinstance(value, dict) else {}


def _unfit(why: str) -> InvalidRequest:
    return InvalidRequest(f"the adapter {why}", param="lora_path")
