"""Commands as bytes, to be carried out later: their options as JSON, their tensors as safetensors.

What is read back has the digest of what was stored. A rule may come with code of the caller's own
and an adapter is a folder that may change meanwhile, so what is made of them is not stored.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load, save

from weightledger.ledger.codecs.factors import Factors
from weightledger.ledger.errors import CorruptLedger, InvalidRequest
from weightledger.ledger.events.bodies import Observed
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import (
    Command,
    CreateVersion,
    MergeAdapter,
    Observe,
    Pin,
    PlaceHold,
    Record,
    Redact,
    Release,
    Retire,
    RollBack,
    UnloadAdapter,
)
from weightledger.ledger.writing.requests import Update
from weightledger.ledger.writing.rollout_commands import AdvanceRollout, EndRollout, StartRollout
from weightledger.ledger.writing.update_commands import ApplyUpdates

Tensors = dict[str, torch.Tensor]
Specs = Mapping[str, TensorSpec]

_PARTS = ("operand", "indices", "a", "b")


def store(command: Command) -> tuple[dict[str, Any], bytes]:
    """A command's options as JSON, and its tensors; InvalidRequest for one that is not stored."""
    tensors: Tensors = {}
    if isinstance(command, ApplyUpdates):
        options = _updates(command, tensors)
    elif isinstance(command, Record):
        tensors |= {name: one.detach().contiguous() for name, one in command.tensors.items()}
        options = {"command": "record", "unwrapped": list(command.unwrapped)}
    elif isinstance(command, CreateVersion):
        metrics = command.performance_metrics
        options = {
            "command": "create_version",
            "description": command.description,
            "performance_metrics": None if metrics is None else dict(metrics),
        }
    elif isinstance(command, Pin):
        options = {"command": "pin", "version_id": command.version_id, "pinned": command.pinned}
    elif isinstance(command, Retire):
        options = {"command": "retire", "version_id": command.version_id}
    elif isinstance(command, PlaceHold):
        options = {"command": "hold", "version_id": command.version_id}
    elif isinstance(command, Release):
        options = {"command": "release", "hold_id": command.hold_id}
    elif isinstance(command, Redact):
        options = {
            "command": "redact",
            "events": list(command.events),
            "texts": list(command.texts),
        }
    elif isinstance(command, RollBack):
        options = {"command": "rollback", "to": command.to}
    elif isinstance(command, Observe):
        options = {"command": "observe", **command.body.to_json()}
    elif isinstance(command, StartRollout):
        options = {"command": "start_rollout", "to": command.to, "percent": command.percent}
    elif isinstance(command, AdvanceRollout):
        options = {
            "command": "advance_rollout",
            "rollout": command.rollout,
            "percent": command.percent,
        }
    elif isinstance(command, EndRollout):
        options = {
            "command": "end_rollout",
            "rollout": command.rollout,
            "status": command.status,
        }
    elif isinstance(command, UnloadAdapter):
        options = {"command": "unload_adapter", "name": command.name}
    elif isinstance(command, MergeAdapter):
        options = {"command": "merge_adapter", "name": command.name, "unload": command.unload}
    else:
        raise InvalidRequest(
            f"{type(command).__name__} cannot wait for a second person: under the two-person rule"
            " send its outcome as an update, or record it"
        )
    return options, save(
        {name: one.cpu().clone() for name, one in tensors.items()}
    ) if tensors else b""


def restore(
    options: Mapping[str, Any], data: bytes, specs: Specs, caller: Caller, metadata: str | None
) -> Command:
    """The command that was stored; CorruptLedger for what is none."""
    try:
        tensors = load(data) if data else {}
        return _RESTORED[options["command"]](options, tensors, specs, caller, metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptLedger(f"a stored command cannot be read: {error!r}") from None


def _updates(command: ApplyUpdates, tensors: Tensors) -> dict[str, Any]:
    options = []
    for number, update in enumerate(command.updates):
        factors = update.factors
        parts = (
            update.operand,
            update.indices,
            None if factors is None else factors.a,
            None if factors is None else factors.b,
        )
        tensors.update(
            (f"{number}.{name}", one)
            for name, one in zip(_PARTS, parts, strict=True)
            if one is not None
        )
        options.append(
            {
                "parameter": update.spec.name,
                "learning_rate": update.learning_rate,
                "update_type": update.update_type,
            }
        )
    return {"command": "apply_updates", "updates": options, "batch": command.batch}


def _apply_updates(
    options: Mapping[str, Any], tensors: Tensors, specs: Specs, caller: Caller, metadata: str | None
) -> Command:
    batch = options["batch"]
    updates = []
    for number, one in enumerate(options["updates"]):
        operand, indices, a, b = (tensors.get(f"{number}.{name}") for name in _PARTS)
        updates.append(
            Update(
                specs[one["parameter"]],
                float(one["learning_rate"]),
                one["update_type"],
                None if batch else metadata,
                operand,
                indices,
                None if a is None or b is None else Factors(a, b),
            )
        )
    return ApplyUpdates(tuple(updates), caller, metadata, batch)


_RESTORED: dict[str, Callable[[Mapping[str, Any], Tensors, Specs, Caller, str | None], Command]] = {
    "apply_updates": _apply_updates,
    "record": lambda options, tensors, specs, caller, metadata: Record(
        tensors, caller, metadata, tuple(options["unwrapped"])
    ),
    "create_version": lambda options, tensors, specs, caller, metadata: CreateVersion(
        options["description"], caller, options["performance_metrics"]
    ),
    "pin": lambda options, tensors, specs, caller, metadata: Pin(
        options["version_id"], options["pinned"], caller
    ),
    "retire": lambda options, tensors, specs, caller, metadata: Retire(
        options["version_id"], caller
    ),
    "hold": lambda options, tensors, specs, caller, metadata: PlaceHold(
        options["version_id"], caller
    ),
    "release": lambda options, tensors, specs, caller, metadata: Release(
        options["hold_id"], caller
    ),
    "redact": lambda options, tensors, specs, caller, metadata: Redact(
        tuple(options["events"]), tuple(options["texts"]), caller
    ),
    "rollback": lambda options, tensors, specs, caller, metadata: RollBack(options["to"], caller),
    "observe": lambda options, tensors, specs, caller, metadata: Observe(
        Observed.from_json(options), caller
    ),
    "start_rollout": lambda options, tensors, specs, caller, metadata: StartRollout(
        options["to"], options["percent"], caller
    ),
    "advance_rollout": lambda options, tensors, specs, caller, metadata: AdvanceRollout(
        options["percent"], options["rollout"], caller
    ),
    "end_rollout": lambda options, tensors, specs, caller, metadata: EndRollout(
        options["status"], options["rollout"], caller
    ),
    "unload_adapter": lambda options, tensors, specs, caller, metadata: UnloadAdapter(
        options["name"], caller
    ),
    "merge_adapter": lambda options, tensors, specs, caller, metadata: MergeAdapter(
        options["name"], options["unload"], caller
    ),
}
