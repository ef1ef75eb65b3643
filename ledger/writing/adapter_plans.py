"""What events about adapters do: load, reload, unload, merge into the base."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from weightledger.ledger import adapters, events
from weightledger.ledger.adapters import LoRAConfig, folder
from weightledger.ledger.adapters.adapter import all_of
from weightledger.ledger.adapters.fit import Target, targets
from weightledger.ledger.codecs.factors import working_dtype
from weightledger.ledger.engines import Engine
from weightledger.ledger.engines.adapted import AdapterEngine
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.plans import Plan, Planner, updates
from weightledger.ledger.writing.requests import IncrementalUpdateRequest, Update, validate
from weightledger.ledger.writing.staged import Staged


def loading(
    engine: Engine,
    name: str,
    path: str | Path,
    *,
    inplace: bool,
    limits: LoRAConfig | None,
) -> Planner:
    """Load the adapter in a folder, or with `inplace` put it in the place of one of that name.

    Raises, when it is planned: InvalidRequest for an engine that shows no adapters, a name that
    is taken, a folder that holds no adapter or one that does not fit, and beyond the limits.
    """

    def plan(staged: Staged) -> Plan:
        _require_capable(engine)
        loaded = adapters.names(staged.live.auxiliary)
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
        adapter = folder.read(name, path)
        found = targets(adapter, engine.specs(), engine.aliases())
        rank = max(target.rank for target in found)
        if limits is not None and rank > limits.max_lora_rank:
            raise InvalidRequest(
                f"LoRA rank {rank} is greater than max_lora_rank {limits.max_lora_rank}.",
                param="lora_path",
            )
        auxiliary: dict[str, torch.Tensor | None] = dict.fromkeys(_stored(staged, name))
        auxiliary.update(adapter.stored)
        digests = {full: content_digest(lanes(t, full)) for full, t in adapter.stored.items()}
        facts = {
            "operation": "load_adapter",
            "adapter": name,
            "path": str(path),
            "digest": digest_of(name, digests),
            "replaced": name in loaded,
            "rank": rank,
            "targets": len(found),
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
    """Add an adapter to the base: one low-rank update of each weight that it changes.

    With `unload` the adapter leaves the state in the same event. Raises, when it is planned,
    NotFound for an adapter that is not loaded, and InvalidRequest where it changes one name of a
    tied weight, since merging would change the others too.
    """

    def plan(staged: Staged) -> Plan:
        stored = _require_loaded(staged, name)
        adapter = all_of(stored)[name]
        specs, aliases = engine.specs(), engine.aliases()
        tied = {*aliases, *aliases.values()}
        requests = []
        for target in targets(adapter, specs, aliases):
            if target.weight in tied:
                raise InvalidRequest(
                    f"adapter {name!r} changes {target.weight!r}, which is tied to another name "
                    "of the model, so it cannot be merged",
                    param="lora_name",
                )
            requests.append(_update(target, specs))
        facts: dict[str, Any] = {
            "operation": "merge_adapter",
            "adapter": name,
            "unloaded": unload,
            "updates": [request.facts for request in requests],
        }
        made = updates(requests, facts)(staged)
        if not unload or made.verdict.reason is not None:
            return made
        return Plan(facts, made.weights, dict.fromkeys(stored))

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


def _update(target: Target, specs: Mapping[str, TensorSpec]) -> Update:
    spec = specs[target.weight]
    dtype = working_dtype(spec)
    # The scale may lie outside of what a learning rate may be, so it goes into a factor.
    b = target.b.to(dtype) * torch.tensor(target.scale, dtype=dtype)
    factors = {"a": b, "b": target.a.to(dtype)}
    return validate(
        IncrementalUpdateRequest(target.weight, learning_rate=1.0, factors=factors), specs
    )


def _require_capable(engine: Engine) -> None:
    if not isinstance(engine, AdapterEngine):
        raise InvalidRequest(
            f"{type(engine).__name__} ({engine.mode}) shows no adapters; serve a Hugging Face "
            "folder with TransformersEngine"
        )


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
