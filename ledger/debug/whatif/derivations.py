"""One table: how each operation of an update is worked out again from what its event kept.

A derivation gives a planner for the state it is asked about. Layers above add their own with
`derives`; a second one for an operation is an error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from weightledger.ledger import events
from weightledger.ledger.codecs.factors import Factors
from weightledger.ledger.errors import CannotDerive, CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies import Updated, body_of
from weightledger.ledger.events.bodies.operands import (
    IN_BLOBS,
    OUTSIDE,
    SWITCHED_OFF,
    TOO_LARGE,
    Operands,
)
from weightledger.ledger.history.reader import History
from weightledger.ledger.tensors.lanes import from_bytes
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec
from weightledger.ledger.writing.commands import ApplyUpdates, MergeAdapter
from weightledger.ledger.writing.handlers import adapters, updates
from weightledger.ledger.writing.plans import Plan, Planner
from weightledger.ledger.writing.requests import UPDATE_TYPES, Update
from weightledger.ledger.writing.staged import Staged


@dataclass(frozen=True, slots=True)
class Kept:
    """What an event kept: its facts, the operands by name, and what was asked beside them."""

    facts: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    asked: Mapping[str, Any]


Derivation = Callable[[Kept], Planner]

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


def planner_of(history: History, event: Event) -> Planner:
    """What works the event out on any state; CannotDerive names it where nothing can."""
    if event.kind == events.ADAPTER_LOADED:
        return _as_stored(history, event)
    if event.kind == events.ADAPTER_UNLOADED:
        return _without_adapter(str(event.body["adapter"]))
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
    return derivation(Kept(facts, _tensors(history, event, operands), operands.asked))


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


def _as_stored(history: History, event: Event) -> Planner:
    """An adapter is what it is, whatever the state."""

    def plan(staged: Staged) -> Plan:
        beside: dict[str, torch.Tensor | None] = {}
        for change in event.changes:
            after = change.after
            known = after is not None and change.spec_after is not None
            beside[change.name] = (
                history.whole(change.spec_after, after) if known else None  # type: ignore[arg-type]
            )
        return Plan(event.body, auxiliary=beside, kind=event.kind)

    return plan


def _without_adapter(name: str) -> Planner:
    from weightledger.ledger.adapters import place

    def plan(staged: Staged) -> Plan:
        prefix = place(name, "")
        held = [full for full in staged.live.auxiliary if full.startswith(prefix)]
        return Plan({}, auxiliary=dict.fromkeys(held), kind=events.ADAPTER_UNLOADED)

    return plan


def _update(kept: Kept) -> Planner:
    """One update, or several as a batch."""
    batch = kept.facts["operation"] == "batch"
    said = kept.facts["updates"] if batch else [kept.facts]

    def plan(staged: Staged) -> Plan:
        asked = tuple(
            _one(one, number, kept.tensors, staged.specs) for number, one in enumerate(said)
        )
        return updates.apply(ApplyUpdates(asked, batch=batch), staged)

    return plan


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


def _merge(kept: Kept) -> Planner:
    command = MergeAdapter(str(kept.facts["adapter"]), bool(kept.facts["unloaded"]))
    return lambda staged: adapters.merge(command, staged)


for _type in (*UPDATE_TYPES, "batch"):
    derives(_type)(_update)
derives("merge_adapter")(_merge)
