"""What commands about adapters do: load, reload, unload, merge into the base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from weightledger.ledger import adapters, events
from weightledger.ledger.adapters import LoRAConfig, folder
from weightledger.ledger.adapters.adapter import Adapter, all_of
from weightledger.ledger.adapters.fit import Target, base_weights, check_values, targets
from weightledger.ledger.engines import Engine
from weightledger.ledger.engines.adapted import AdapterEngine
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import finite, lanes, spec_of, tensor_digest, torch_dtype
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec
from weightledger.ledger.writing.arithmetic import NonFiniteResult, compute
from weightledger.ledger.writing.commands import LoadAdapter, MergeAdapter, UnloadAdapter
from weightledger.ledger.writing.given import Given
from weightledger.ledger.writing.plan import Plan, Write
from weightledger.ledger.writing.policy import Verdict
from weightledger.ledger.writing.requests import IncrementalUpdateRequest, Update, validate
from weightledger.ledger.writing.staged import Staged


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An adapter's folder, read once: before its event is worked out, which nobody waits for.

    `base` are the weights of the base that it repeats: what each is and its digest, by full name.
    """

    adapter: Adapter
    targets: Sequence[Target]
    base: Mapping[str, tuple[TensorSpec, bytes]]


def read(command: LoadAdapter, staged: Staged) -> LoadAdapter:
    """The same command with its folder read and checked, and the engine readied to show it.

    Needs no lock and changes nothing. Raises InvalidRequest for an engine that shows no adapters,
    a name that is not allowed, a folder that holds no adapter or one that does not fit; NotFound
    for no folder. Of a name that is taken nothing is read: whether it still is, `load` finds out.
    """
    adapters.check_name(command.name, staged.history.model)
    _require_capable(staged.engine)
    if _refusal(adapters.names(staged.committed.auxiliary), command, staged.policy.adapters):
        return command
    return replace(command, folder=_read(command, staged))


def _read(command: LoadAdapter, staged: Staged) -> AdapterFolder:
    name, engine, limits = command.name, staged.engine, staged.policy.adapters
    capable = _require_capable(engine)
    described = folder.describe(command.path)
    fitting = targets(described.config, described.shapes, engine.specs(), engine.aliases())
    rank = max(target.rank for target in fitting)
    if limits is not None and rank > limits.max_lora_rank:
        raise InvalidRequest(
            f"LoRA rank {rank} is greater than max_lora_rank {limits.max_lora_rank}.",
            param="lora_path",
        )
    adapter = described.read(name)
    check_values(adapter)
    adapter, base = _without_base(engine, adapter)
    capable.ready(adapter)
    return AdapterFolder(adapter, fitting, base)


def load(command: LoadAdapter, staged: Staged) -> Plan:
    """The adapter that was read beside the base, or in the place of one of its name.

    Raises InvalidRequest for a name that is taken, beyond the policy's limits, and where it repeats
    weights of another base.
    """
    staged.make_room()
    loaded = adapters.names(staged.live.auxiliary)
    refusal = _refusal(loaded, command, staged.policy.adapters)
    if refusal is not None:
        raise refusal
    source = command.folder or _read(command, staged)
    assert isinstance(source, AdapterFolder)
    _require_base(source.base, staged)
    stored = source.adapter.stored
    auxiliary: dict[str, torch.Tensor | None] = dict.fromkeys(_stored(staged, command.name))
    auxiliary.update(stored)
    digests = {full: content_digest(lanes(tensor, full)) for full, tensor in stored.items()}
    facts = {
        "operation": "load_adapter",
        "adapter": command.name,
        "path": str(command.path),
        "digest": digest_of(command.name, digests),
        "replaced": command.name in loaded,
        "rank": max(target.rank for target in source.targets),
        "targets": len(source.targets),
    }
    return Plan(facts, auxiliary=auxiliary, kind=events.ADAPTER_LOADED)


def unload(command: UnloadAdapter, staged: Staged) -> Plan:
    """The adapter leaves the state; NotFound if it is not in it."""
    staged.make_room()
    stored = _require_loaded(staged, command.name)
    facts = {"operation": "unload_adapter", "adapter": command.name}
    return Plan(facts, auxiliary=dict.fromkeys(stored), kind=events.ADAPTER_UNLOADED)


def merge(command: MergeAdapter, staged: Staged) -> Plan:
    """The adapter added to the base: one update of each weight that it changes, to PEFT's bits.

    With `unload` the adapter leaves the state in the same event. Raises NotFound for an adapter
    that is not loaded, and InvalidRequest where it changes one name of a tied weight, since merging
    would change the others too.
    """
    staged.make_room()
    name, engine = command.name, staged.engine
    stored = _require_loaded(staged, name)
    adapter = all_of(stored)[name]
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
    updates: list[Mapping[str, Any]] = []
    facts: dict[str, Any] = {
        "operation": "merge_adapter",
        "adapter": name,
        "unloaded": command.unload,
        "updates": updates,
    }
    weights: dict[str, Write] = {}
    try:
        for target in fitting:
            update = _update(engine, adapter, target, specs)
            updates.append(update.facts)
            weights[target.weight] = Write(compute(update, staged.weight(target.weight)))
    except NonFiniteResult as error:
        reason = f"Automatic rollback: {error}"
        return Plan(facts, verdict=Verdict(reason=reason, evidence={"cause": "non_finite"}))
    return Plan(facts, weights, dict.fromkeys(stored) if command.unload else {}, given=Given())


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
    spec = specs[target.weight]
    transposed = _is_transposed(engine, adapter, target, spec)
    delta = target.delta(adapter, transposed=transposed, weight_dtype=torch_dtype(spec))
    if not finite(delta):
        raise NonFiniteResult(target.weight, int((~torch.isfinite(delta)).sum()))
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


def _without_base(
    engine: Engine, adapter: Adapter
) -> tuple[Adapter, Mapping[str, tuple[TensorSpec, bytes]]]:
    """The adapter without the weights of the base that it repeats, and these."""
    repeated, aliases = base_weights(adapter.tensors), engine.aliases()
    base: dict[str, tuple[TensorSpec, bytes]] = {}
    for key, weight in repeated.items():
        full, tensor = WEIGHTS + aliases.get(weight, weight), adapter.tensors[key]
        base[full] = spec_of(full, tensor), tensor_digest(tensor)
    own = {key: tensor for key, tensor in adapter.tensors.items() if key not in repeated}
    return (Adapter.new(adapter.name, adapter.config, own) if repeated else adapter), base


def _require_base(base: Mapping[str, tuple[TensorSpec, bytes]], staged: Staged) -> None:
    """InvalidRequest unless weights that an adapter repeats are the live ones.

    PEFT would put them in the place of the base's, and the base is not the adapter's to change.
    """
    state = staged.live.state
    for full, repeated in base.items():
        if repeated != (state.specs[full], state.digests[full]):
            raise InvalidRequest(
                f"the adapter brings {full.removeprefix(WEIGHTS)!r} along, other than the model "
                "has it; save it with save_embedding_layers=False",
                param="lora_path",
            )


def _refusal(
    loaded: Sequence[str], command: LoadAdapter, limits: LoRAConfig | None
) -> InvalidRequest | None:
    """Why no adapter may be loaded under a name beside those that are, if there is a reason."""
    if command.name in loaded and not command.inplace:
        return InvalidRequest(
            f"The lora adapter '{command.name}' has already been loaded. If you want to load the "
            "adapter in place, set 'load_inplace' to True.",
            param="lora_name",
        )
    if limits is not None and len({*loaded, command.name}) > limits.max_loras:
        return InvalidRequest(
            f"{len(loaded)} adapters are loaded and max_loras is {limits.max_loras}: unload "
            f"one of {', '.join(loaded)}",
            param="lora_name",
        )
    return None


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
