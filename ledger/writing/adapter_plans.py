"""What events about adapters do: load, reload, unload, merge into the base."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightledger.ledger import adapters, events
from weightledger.ledger.adapters import Adapter, LoRAConfig, folder
from weightledger.ledger.adapters.fit import Target, base_weights, check_values, targets
from weightledger.ledger.codecs.on_device import same_bits
from weightledger.ledger.engines import Engine
from weightledger.ledger.engines.adapted import AdapterEngine
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.projection.projector import LiveState
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.plans import Plan, Planner, Verdict, Write
from weightledger.ledger.writing.requests import (
    IncrementalUpdateRequest,
    NonFiniteResult,
    Update,
    compute,
    validate,
)
from weightledger.ledger.writing.staged import Staged


@dataclass(frozen=True, slots=True)
class Folder:
    """An adapter's folder, read once: before its event is worked out, which nobody waits for."""

    adapter: Adapter
    targets: Sequence[Target]
    path: str


def reading(
    engine: Engine,
    live: LiveState,
    name: str,
    path: str | Path,
    *,
    inplace: bool,
    limits: LoRAConfig | None,
) -> Folder:
    """Read and check the adapter in a folder, and ready the engine to show it.

    Needs no lock and changes nothing. Raises as the plan of `loading` does, InvalidRequest for a
    folder that holds no adapter or one that does not fit, and NotFound for no folder.
    """
    capable = _require_capable(engine)
    _admit(adapters.names(live.auxiliary), name, inplace=inplace, limits=limits)
    described = folder.describe(path)
    fitting = targets(described.config, described.shapes, engine.specs(), engine.aliases())
    rank = max(target.rank for target in fitting)
    if limits is not None and rank > limits.max_lora_rank:
        raise InvalidRequest(
            f"LoRA rank {rank} is greater than max_lora_rank {limits.max_lora_rank}.",
            param="lora_path",
        )
    adapter = described.read(name)
    check_values(adapter)
    adapter = _without_base(engine, adapter)
    capable.ready(adapter)
    return Folder(adapter, fitting, str(path))


def loading(
    source: Callable[[], Folder], name: str, *, inplace: bool, limits: LoRAConfig | None
) -> Planner:
    """Load an adapter that was read, or with `inplace` put it in the place of one of that name.

    Raises InvalidRequest, when it is planned, for a name that is taken, and beyond the limits.
    """

    def plan(staged: Staged) -> Plan:
        loaded = adapters.names(staged.live.auxiliary)
        _admit(loaded, name, inplace=inplace, limits=limits)
        read = source()
        auxiliary: dict[str, torch.Tensor | None] = dict.fromkeys(_stored(staged, name))
        auxiliary.update(read.adapter.stored)
        digests = {
            full: content_digest(lanes(tensor, full))
            for full, tensor in read.adapter.stored.items()
        }
        facts = {
            "operation": "load_adapter",
            "adapter": name,
            "path": read.path,
            "digest": digest_of(name, digests),
            "replaced": name in loaded,
            "rank": max(target.rank for target in read.targets),
            "targets": len(read.targets),
        }
        return Plan(facts, auxiliary=auxiliary, kind=events.ADAPTER_LOADED)

    return plan


def unloading(name: str) -> Planner:
    """Take an adapter out of the state; NotFound, when it is planned, if it is not in it."""

    def plan(staged: Staged) -> Plan:
        stored = _require_loaded(staged, name)
        facts = {"operation": "unload_adapter", "adapter": name}
        return Plan(facts, auxiliary=dict.fromkeys(stored), kind=events.ADAPTER_UNLOADED)

    return plan


def merging(engine: Engine, name: str, *, unload: bool) -> Planner:
    """Add an adapter to the base: one update of each weight that it changes, to PEFT's bits.

    With `unload` the adapter leaves the state in the same event. Raises, when it is planned,
    NotFound for an adapter that is not loaded, and InvalidRequest where it changes one name of a
    tied weight, since merging would change the others too.
    """

    def plan(staged: Staged) -> Plan:
        stored = _require_loaded(staged, name)
        adapter = adapters.all_of(stored)[name]
        specs, aliases = engine.specs(), engine.aliases()
        tied = {*aliases, *aliases.values()}
        shapes = {key: tensor.shape for key, tensor in adapter.tensors.items()}
        fitting = targets(adapter.config, shapes, specs, aliases)
        for target in fitting:
            if target.weight in tied:
                raise InvalidRequest(
                    f"adapter {name!r} changes {target.weight!r}, which is tied to another name "
                    "of the model, so it cannot be merged",
                    param="lora_name",
                )
        made: list[Mapping[str, Any]] = []
        facts: dict[str, Any] = {
            "operation": "merge_adapter",
            "adapter": name,
            "unloaded": unload,
            "updates": made,
        }
        weights: dict[str, Write] = {}
        try:
            for target in fitting:
                update = _update(engine, adapter, target, specs)
                made.append(update.facts)
                weights[target.weight] = Write(compute(update, staged.weight(target.weight)))
        except NonFiniteResult as error:
            reason = f"Automatic rollback: {error}"
            return Plan(facts, verdict=Verdict(reason=reason, evidence={"cause": "non_finite"}))
        return Plan(facts, weights, dict.fromkeys(stored) if unload else {})

    return plan


def digest_of(name: str, digests: Mapping[str, bytes]) -> str:
    """The hex digest of an adapter's config and matrices, whatever it is called.

    `digests` are those of tensors by full state name.
    """
    prefix = adapters.place(name, "")
    parts = {
        full.removeprefix(prefix): digest.hex()
        for full, digest in digests.items()
        if full.startswith(prefix)
    }
    return content_digest(canonical(parts)).hex()


def _update(
    engine: Engine, adapter: Adapter, target: Target, specs: Mapping[str, TensorSpec]
) -> Update:
    transposed = _is_transposed(engine, adapter, target, specs[target.weight])
    delta = target.delta(adapter, transposed=transposed)
    return validate(IncrementalUpdateRequest(target.weight, delta, learning_rate=1.0), specs)


def _is_transposed(engine: Engine, adapter: Adapter, target: Target, spec: TensorSpec) -> bool:
    """Whether a weight is [inputs, outputs]; a square one does not show it by its shape."""
    if target.embedding:
        return True
    outputs, inputs = adapter.tensors[target.b].shape[0], adapter.tensors[target.a].shape[1]
    if outputs != inputs:
        return spec.shape == (inputs, outputs)
    known = engine.transposed(target.module) if isinstance(engine, AdapterEngine) else None
    return bool(adapter.config.get("fan_in_fan_out")) if known is None else known


def _without_base(engine: Engine, adapter: Adapter) -> Adapter:
    """The adapter without the weights of the base that it repeats; they have to be the live ones.

    PEFT would put them in the place of the base's, and the base is not the adapter's to change.
    """
    repeated = base_weights(adapter.tensors)
    aliases = engine.aliases()
    for key, weight in repeated.items():
        if not same_bits(engine.tensor(aliases.get(weight, weight)), adapter.tensors[key]):
            raise InvalidRequest(
                f"the adapter brings {weight!r} along, other than the model has it; save it with "
                "save_embedding_layers=False",
                param="lora_path",
            )
    own = {key: tensor for key, tensor in adapter.tensors.items() if key not in repeated}
    return Adapter.new(adapter.name, adapter.config, own) if repeated else adapter


def _admit(loaded: Sequence[str], name: str, *, inplace: bool, limits: LoRAConfig | None) -> None:
    if name in loaded and not inplace:
        raise InvalidRequest(
            f"The lora adapter '{name}' has already been loaded. If you want to load the "
            "adapter in place, set 'load_inplace' to True.",
            param="lora_name",
        )
    if limits is not None and len({*loaded, name}) > limits.max_loras:
        raise InvalidRequest(
            f"{len(loaded)} adapters are loaded and max_loras is {limits.max_loras}: unload "
            f"one of {', '.join(loaded)}",
            param="lora_name",
        )


def _require_capable(engine: Engine) -> AdapterEngine:
    if not isinstance(engine, AdapterEngine):
        raise InvalidRequest(
            f"{type(engine).__name__} ({engine.mode}) shows no adapters; serve a Hugging Face "
            "folder with TransformersEngine"
        )
    return engine


def _stored(staged: Staged, name: str) -> dict[str, torch.Tensor]:
    prefix = adapters.place(name, "")
    return {
        full: tensor for full, tensor in staged.live.auxiliary.items() if full.startswith(prefix)
    }


def _require_loaded(staged: Staged, name: str) -> dict[str, torch.Tensor]:
    stored = _stored(staged, name)
    if not stored:
        raise NotFound(f"The lora adapter '{name}' cannot be found.", param="lora_name")
    return stored
