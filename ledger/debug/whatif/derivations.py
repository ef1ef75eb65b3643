"""One table: how each operation of an update is worked out again from what its event kept.

A derivation gives the command that the event was, to be worked out on the state that is asked
about. Layers above add their own with `derives`; a second one for an operation is an error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from weightledger.ledger import events
from weightledger.ledger.adapters import place
from weightledger.ledger.codecs.factors import Factors
from weightledger.ledger.errors import CannotDerive, CorruptLedger, Pruned
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies import Updated, body_of
from weightledger.ledger.events.bodies.operands import (
    OUTSIDE,
    SWITCHED_OFF,
    TOO_LARGE,
    Operands,
)
from weightledger.ledger.events.kinds import IN_BLOBS
from weightledger.ledger.history.reader import History
from weightledger.ledger.tensors.lanes import from_bytes
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec
from weightledger.ledger.writing.commands import Command, MergeAdapter
from weightledger.ledger.writing.handlers import row_of
from weightledger.ledger.writing.plan import Plan
from weightledger.ledger.writing.requests import UPDATE_TYPES, Update
from weightledger.ledger.writing.staged import Staged
from weightledger.ledger.writing.update_commands import ApplyUpdates


@dataclass(frozen=True, slots=True)
class Kept:
    """What an event kept: its facts, the operands by name, and what was asked beside them.

    `specs` are the model's tensors by bare name.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    asked: Mapping[str, Any]
    specs: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class AdapterMove:
    """An adapter that came or went. It is what it is, whatever the state: all of its tensors by
    full name, none of one that went; whatever is there under its name goes."""

    kind: str
    adapter: str
    tensors: Mapping[str, torch.Tensor]


Derivation = Callable[[Kept], Command]

_DERIVATIONS: dict[str, Derivation] = {}

_WHY = {
    OUTSIDE: "its values came ready from elsewhere",
    TOO_LARGE: "its operands were not kept, they were too large; set keep_operands to all",
    SWITCHED_OFF: "its operands were not kept, keep_operands is none",
}


def derives(operation: str) -> Callable[[Derivation], Derivation]:
    """Say how an operation is worked out again; ValueError when that is known already."""

    def add(derivation: Derivation) -> Derivation:
        if operation in _DERIVATIONS:
            raise ValueError(f"{operation!r} has a derivation already")
        _DERIVATIONS[operation] = derivation
        return derivation

    return add


def derivation_modules() -> list[str]:
    """The modules whose import makes every derivation known that is known here."""
    return sorted({derivation.__module__ for derivation in _DERIVATIONS.values()})


def derived(
    history: History, event: Event, specs: Mapping[str, TensorSpec]
) -> Command | AdapterMove:
    """What the event was, for any state; CannotDerive names it where nothing can tell."""
    if history.pruned(event.seq):
        raise _cannot(event, "gc dropped what it stored")
    if event.kind in (events.ADAPTER_LOADED, events.ADAPTER_UNLOADED):
        came = event.kind == events.ADAPTER_LOADED
        tensors = _as_loaded(history, event) if came else {}
        return AdapterMove(event.kind, str(event.body["adapter"]), tensors)
    operation = str(event.body.get("operation"))
    operands = body_of(event, Updated).operands
    if operands is None:
        raise _cannot(event, "it is of an earlier release, which kept no operands")
    if operands.where is None:
        raise _cannot(event, _WHY.get(operands.why or "", "its operands were not kept"))
    derivation = _DERIVATIONS.get(operation)
    if derivation is None:
        raise _cannot(
            event,
            f"nothing here knows how to work out {operation!r}; learning rules say so once "
            "weightledger.rules is imported",
        )
    facts = {key: value for key, value in event.body.items() if key != "operands"}
    kept = Kept(facts, _tensors(history, event, operands), operands.asked, specs)
    return derivation(kept)


def plan_of(what: Command | AdapterMove, staged: Staged) -> Plan:
    """The plan of an event on a state."""
    if not isinstance(what, AdapterMove):
        plan = row_of(what).handle(what, staged)
        assert isinstance(plan, Plan), "what changes weights is planned"
        return plan
    prefix = place(what.adapter, "")
    there = dict.fromkeys(n for n in staged.live.auxiliary if n.startswith(prefix))
    return Plan({}, auxiliary={**there, **what.tensors}, kind=what.kind)


def _cannot(event: Event, why: str) -> CannotDerive:
    return CannotDerive(f"{event.name} cannot be worked out again: {why}", seq=event.seq)


def _tensors(history: History, event: Event, operands: Operands) -> dict[str, torch.Tensor]:
    if operands.where == IN_BLOBS:
        tensors = {}
        for one in operands.tensors:
            assert one.digest is not None
            tensors[one.spec.name] = history.whole(one.spec, one.digest)
        return tensors
    payload = (
        memoryview(history.store.payload(event)) if operands.payload_bytes else memoryview(b"")
    )
    at = len(payload) - operands.payload_bytes
    if at < 0:
        raise CorruptLedger(f"event {event.seq}: payload lacks its operands", seq=event.seq)
    tensors = {}
    for one in operands.tensors:
        tensors[one.spec.name] = from_bytes(one.spec, payload[at : at + one.nbytes])
        at += one.nbytes
    return tensors


def _as_loaded(history: History, event: Event) -> dict[str, torch.Tensor]:
    """The whole adapter that an event loaded.

    What one in whose place it came had already, such as the config, is not among its changes.
    """
    prefix, state = place(str(event.body["adapter"]), ""), history.digests(event.node)
    names = [name for name in state.specs if name.startswith(prefix)]
    try:
        return history.tensors(event.node, event.state_after, names)
    except Pruned as error:
        raise _cannot(event, "gc dropped a part of the adapter") from error


def _update(kept: Kept) -> ApplyUpdates:
    """One update, or several as a batch."""
    batch = kept.facts["operation"] == "batch"
    said = kept.facts["updates"] if batch else [kept.facts]
    asked = [_one(one, number, kept.tensors, kept.specs) for number, one in enumerate(said)]
    return ApplyUpdates(tuple(asked), batch=batch)


def _one(
    facts: Mapping[str, Any],
    number: int,
    tensors: Mapping[str, torch.Tensor],
    specs: Mapping[str, TensorSpec],
) -> Update:
    spec = specs[str(facts["parameter"]).removeprefix(WEIGHTS)]
    rate, kind = float(facts["learning_rate"]), str(facts["operation"])
    a = tensors.get(f"{number}/a")
    if a is not None:
        return Update(spec, rate, kind, None, factors=Factors(a, tensors[f"{number}/b"]))
    operand, indices = tensors[f"{number}/operand"], tensors.get(f"{number}/indices")
    return Update(spec, rate, kind, None, operand, indices)


def _merge(kept: Kept) -> MergeAdapter:
    return MergeAdapter(str(kept.facts["adapter"]), bool(kept.facts["unloaded"]))


for _type in (*UPDATE_TYPES, "batch"):
    derives(_type)(_update)
derives("merge_adapter")(_merge)
