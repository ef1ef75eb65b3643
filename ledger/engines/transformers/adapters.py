"""Modules that run a base through a LoRA adapter, made by peft.

peft rewrites a module in place, so it gets one made of stand-ins without data; versions are copies
of what it made, with the live tensors in their places. Tensors of the base are shared between its
own module and those of all adapters.
"""

import re
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model

from weightledger.ledger.adapters.adapter import Adapter
from weightledger.ledger.adapters.fit import Target, targets
from weightledger.ledger.adapters.patterns import Targeting
from weightledger.ledger.engines import copying
from weightledger.ledger.engines.line import Built, Line, Private
from weightledger.ledger.engines.naming import Naming, of_module
from weightledger.ledger.engines.versions import Candidate
from weightledger.ledger.errors import InvalidRequest

# A name inside of the module only; peft's may hold no dot, ours may.
_INNER = "default"
# Filters of warnings are the process's: two threads that set and restore them undo each other.
_FILTERING = threading.Lock()


class AdaptedSkeleton:
    """The structure of a base with one adapter, and that adapter's matrices.

    Matrices have the dtype of their weight, or float32 for halves, as `PeftModel` has it.
    Raises InvalidRequest for an adapter that does not fit the base.
    """

    def __init__(self, adapter: Adapter, base: copying.Skeleton, naming: Naming) -> None:
        self.adapter = adapter
        shapes = {key: tensor.shape for key, tensor in adapter.tensors.items()}
        wanted = targets(adapter.config, shapes, naming.specs, naming.aliases)
        with torch.inference_mode(False), torch.no_grad():
            stand_ins = {name: copying.stand_in(t) for name, t in naming.tensors.items()}
            module = base.build(stand_ins)
            layers = _injected(module, adapter.config, wanted)
            for target in wanted:
                _fill(layers[target.module], target, adapter)
            given = of_module(module)
            self._skeleton = copying.Skeleton(module, given)
        names = {id(stand_in): name for name, stand_in in stand_ins.items()}
        self._shared = {key: names[id(t)] for key, t in given.tensors.items() if id(t) in names}
        self._keys: dict[str, list[str]] = {}
        for key, name in self._shared.items():
            self._keys.setdefault(name, []).append(key)
        self._own = {key: t for key, t in given.tensors.items() if id(t) not in names}

    def start(self, base: Candidate) -> "AdaptedModule":
        """The module of a version of the base that is the first one with this adapter."""
        whole = base.whole
        line = self._skeleton.line(self._tensors(whole))
        return AdaptedModule(self, line, None, {}, lambda: self._tensors(whole))

    def follow(self, line: Line, base: Candidate) -> "AdaptedModule":
        """The module of the version of the base that comes after the one that `line` is at."""
        whole = base.whole
        new = {key: t for name, t in base.tensors.items() for key in self._keys.get(name, ())}
        built = line.build(new, lambda: self._tensors(whole))
        return AdaptedModule(self, line, built, new, lambda: self._tensors(whole))

    def _tensors(self, base: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {**{key: base[name] for key, name in self._shared.items()}, **self._own}


class AdaptedModule:
    """One version of the base through an adapter; `built` is None where it is the first one."""

    def __init__(
        self,
        skeleton: AdaptedSkeleton,
        line: Line,
        built: Built | None,
        new: Mapping[str, torch.Tensor],
        tensors: Callable[[], Mapping[str, torch.Tensor]],
    ) -> None:
        self.skeleton = skeleton
        self.line = line
        self._built = built
        self._new = new
        self._tensors = tensors
        self.module = line.module if built is None else built.module
        self._private: Private | None = None

    def after(self, base: Candidate) -> "AdaptedModule":
        """The same adapter on the next version of the base."""
        return self.skeleton.follow(self.line, base)

    def show(self) -> None:
        """Make it the current one of its adapter, when the version of the base becomes current."""
        if self._built is not None and not self.line.adopt(self._built):
            # What a reader left in the version before was cleared away since.
            self.line.adopt(self.line.build(self._new, self._tensors))
        self._built = None
        self.module, self._private = self.line.module, self.line.private(self._tensors)

    def renewed(self) -> "AdaptedModule":
        """The same without what readers left in it."""
        other = AdaptedModule(self.skeleton, self.line, self.line.renewed(), {}, self._tensors)
        other.show()
        return other

    def leased(self) -> torch.nn.Module:
        """The model to infer with, for one reader."""
        return self.module if self._private is None else self._private()


def _injected(
    module: torch.nn.Module, config: Mapping[str, Any], wanted: Sequence[Target]
) -> dict[str, Any]:
    """The layers that peft puts in, by name; exactly those that the adapter has matrices for.

    peft is told names instead of the config's expressions, which it would match without a limit.
    """
    modules = {target.module for target in wanted}
    targeting = Targeting.of(config)
    if not targeting.by_kind:
        _require_same(
            {name for name, _ in module.named_modules() if targeting.picks(name)}, modules
        )
    try:
        # The matrices are of no use before they are filled, and random numbers belong to others.
        # Not by peft's `low_cpu_mem_usage`: it changes torch for every thread while it lasts, and
        # for good where two threads do it at once.
        with torch.device("meta"), _FILTERING, warnings.catch_warnings():
            # That fan_in_fan_out is not as the kind of a layer has it, which then holds.
            warnings.simplefilter("ignore", UserWarning)
            inject_adapter_in_model(
                LoraConfig(
                    target_modules=config.get("target_modules")
                    if targeting.by_kind
                    else sorted(modules),
                    r=targeting.rank,
                    lora_alpha=targeting.alpha,  # type: ignore[arg-type]  # any number in truth
                    rank_pattern=_by_name(modules, targeting.rank_of, targeting.rank),
                    alpha_pattern=_by_name(modules, targeting.alpha_of, targeting.alpha),
                    use_rslora=bool(config.get("use_rslora")),
                    inference_mode=True,
                ),
                module,
                adapter_name=_INNER,
            )
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        raise InvalidRequest(
            f"the adapter does not fit the model: {error}", param="lora_path"
        ) from error
    layers = {name: part for name, part in module.named_modules() if hasattr(part, "lora_A")}
    _require_same(set(layers), modules)
    return layers


def _by_name(
    modules: Iterable[str], value_of: Callable[[str], Any], default: Any
) -> dict[str, Any]:
    """One pattern for each other value, of the names that have it: peft tries all on each."""
    names: dict[Any, list[str]] = {}
    for name in sorted(modules):
        if value_of(name) != default:
            names.setdefault(value_of(name), []).append(re.escape(name))
    return {f"^(?:{'|'.join(alike)})": value for value, alike in names.items()}


def _require_same(picked: set[str], modules: set[str]) -> None:
    if picked != modules:
        odd = sorted(picked ^ modules)
        raise InvalidRequest(
            "the adapter's target_modules and its matrices name other modules: "
            f"{', '.join(odd[:4])}",
            param="lora_path",
        )


def _fill(layer: Any, target: Target, adapter: Adapter) -> None:
    tables = (
        (layer.lora_embedding_A, layer.lora_embedding_B)
        if target.embedding
        else (layer.lora_A, layer.lora_B)
    )
    keys = (target.a, target.b)
    for table, key, matrix in zip(tables, keys, target.matrices(adapter), strict=True):
        if _INNER not in table:
            raise InvalidRequest(
                f"the adapter has a tensor {key!r}, but {target.module!r} is no such module",
                param="lora_path",
            )
        made = table[_INNER] if target.embedding else table[_INNER].weight
        if made.shape != matrix.shape:
            raise InvalidRequest(
                f"the adapter has {key!r} as {list(matrix.shape)}; expected {list(made.shape)}",
                param="lora_path",
            )
        weight = torch.nn.Parameter(matrix.to(layer.weight.device), requires_grad=False)
        if target.embedding:
            table[_INNER] = weight
        else:
            table[_INNER].weight = weight
