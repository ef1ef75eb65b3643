"""What a write wants to append: pure preparation, nothing durable and nothing visible yet.

Each function looks at the live state, computes and encodes, and returns a ProposedEvent; the writer
commits it or, when another writer was faster, asks for it again on the newer state.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from weightledger.ledger import events
from weightledger.ledger.blobs import Buffer
from weightledger.ledger.codecs.factors import Factors
from weightledger.ledger.codecs.on_device import same_bits
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.events import Draft, Event
from weightledger.ledger.events.changes import WHOLE, TensorChange
from weightledger.ledger.history import versions
from weightledger.ledger.history.positions import Position
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.projector import Changes, LiveState
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import clone, lanes, spec_of
from weightledger.ledger.tensors.spec import WEIGHTS
from weightledger.ledger.writing.encoding import Recorded, TensorWrite, record_tensors
from weightledger.ledger.writing.payload import EMPTY, Payload, PayloadWriter
from weightledger.ledger.writing.requests import NonFiniteResult, Update, compute
from weightledger.ledger.writing.staged import Staged

# Factors above this share of the tensor's bytes are not worth an event that cannot be undone.
_WORTHWHILE_FACTORS = 0.25

PUBLISH_FAILED = "publish_failed"
"""Cause of a `rolled_back` event that answers the event before it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a guard found: measurements before and after, and why the candidate is refused.

    `reason` None accepts. `evidence` is JSON that goes into the event.
    """

    pre_metrics: Mapping[str, float] = field(default_factory=dict)
    post_metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


Guard = Callable[[Changes], Verdict]
"""Judges a change, which is not visible, before its event is appended.

A guard with an attribute `alone` that is False looks neither at the candidate module nor at the
live state, so that several changes can be judged before the first of them is appended.
"""


def runs_alone(guard: Guard | None) -> bool:
    """Whether an event judged by this guard has to be appended before the next is worked out."""
    return guard is not None and bool(getattr(guard, "alone", True))


@dataclass(frozen=True, slots=True)
class Write:
    """A weight's new value; `positions` as for `encoding.TensorWrite`, `factors` where they led
    to it."""

    after: torch.Tensor
    positions: torch.Tensor | None = None
    factors: Factors | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What one state-changing event is to do, worked out on the live state.

    `facts` go into the event's body. `weights` maps bare names to new values; `auxiliary` maps full
    names outside of the weights (`rule/…`, `adapter/…`) to tensors, None to remove one.
    `verdict` is what was found before the guard is asked; one with a reason refuses the plan.
    """

    facts: Mapping[str, Any]
    weights: Mapping[str, Write] = field(default_factory=dict)
    auxiliary: Mapping[str, torch.Tensor | None] = field(default_factory=dict)
    kind: str = events.UPDATED
    verdict: Verdict = field(default_factory=Verdict)


Planner = Callable[[Staged], Plan]
"""Works a plan out on the live state; asked again when another writer was faster."""


@dataclass(frozen=True, slots=True)
class ProposedEvent:
    """One round of a write: the draft, its payload, and what to show once it is durable.

    `parameters` are the full state names that the event counts as an update of; `changes` is
    None when no tensor changes.
    """

    draft: Draft
    payload: Payload = EMPTY
    parameters: Sequence[str] = ()
    changes: Changes | None = None


def updates(requests: Sequence[Update], facts: Mapping[str, Any]) -> Planner:
    """Updates of parameters, each computed on what those before it made."""

    def plan(staged: Staged) -> Plan:
        writes: dict[str, Write] = {}
        try:
            for request in requests:
                name = request.spec.name
                known = writes.get(name)
                before = known.after if known else staged.tensor(WEIGHTS + name)
                after = compute(request, before)
                if known is None:
                    writes[name] = Write(after, request.indices, request.factors)
                else:
                    writes[name] = Write(after, _both(known.positions, request.indices))
        except NonFiniteResult as error:
            reason = f"Automatic rollback: {error}"
            return Plan(facts, verdict=Verdict(reason=reason, evidence={"cause": "non_finite"}))
        return Plan(facts, writes)

    return plan


def planned(
    history: History, staged: Staged, planner: Planner, guard: Guard | None
) -> ProposedEvent:
    """The event of a plan, or its refusal by the plan itself or by the guard."""
    staged.make_room()
    plan = planner(staged)
    # A plan that was refused may have been so for weights that it does not name.
    staged.check_untouched(None if plan.verdict.reason is not None else plan.weights)
    if plan.verdict.reason is not None:
        return _rejection(staged, plan.facts, plan.verdict)
    payload = PayloadWriter(history.blobs)
    writes = [_written(staged, WEIGHTS + name, write) for name, write in plan.weights.items()]
    recorded = record_tensors(writes, payload, history.pool)
    whole = [_whole(history, staged, name, tensor) for name, tensor in plan.auxiliary.items()]
    moved = [change for change, _ in whole if change.before != change.after]
    changes = staged.changed(recorded, moved, plan.auxiliary)
    verdict = plan.verdict
    if guard is not None:
        if runs_alone(guard):
            changes = staged.prepare(changes)
        verdict = _joined(verdict, guard(changes))
    if verdict.reason is not None:
        return _rejection(staged, plan.facts, verdict)
    finished = payload.finish()
    for _, blobs in whole:
        finished.blobs.update(blobs)
    body = dict(plan.facts)
    if plan.kind == events.UPDATED:
        body["delta_norm"] = _norm(recorded)
        body["pre_metrics"] = dict(verdict.pre_metrics)
        body["post_metrics"] = dict(verdict.post_metrics)
        if verdict.evidence:
            body["evidence"] = dict(verdict.evidence)
    changed = [one.change for one in recorded if one.change.changed] + moved
    draft = Draft(
        kind=plan.kind,
        body={**body, "tensors": [change.to_json() for change in changed]},
        state_after=changes.state.value,
        series=events.UPDATES if plan.kind == events.UPDATED else None,
    )
    parameters = [WEIGHTS + name for name in plan.weights]
    return ProposedEvent(draft, finished, parameters, changes)


def recording(tensors: Mapping[str, torch.Tensor]) -> Planner:
    """The difference between the live weights and `tensors`, by bare name."""

    def plan(staged: Staged) -> Plan:
        # The caller may go on changing its tensor meanwhile, so what is recorded is a copy.
        writes = {
            name: Write(clone(tensors[name]))
            for name, spec in staged.specs.items()
            if not same_bits(staged.tensor(WEIGHTS + name), tensors[name])
        }
        return Plan({"operation": "record"}, writes)

    return plan


def version(staged: Staged, named: Event, facts: Mapping[str, Any]) -> ProposedEvent:
    """A name for the state after the event `named`."""
    names = {"seq": named.state_seq, "node": named.node, "state": named.state_after.hex()}
    return _without_state_change(
        staged, events.VERSION_CREATED, {**facts, "names": names}, events.VERSIONS
    )


def retirement(history: History, staged: Staged, version_created: Event) -> ProposedEvent:
    """Takes a version's name off the list; NotFound when another writer already has."""
    if not versions.is_listed(history.store, version_created):
        raise NotFound(f"Version {version_created.name} is retired already")
    if versions.is_pinned(history.store, version_created):
        raise InvalidRequest(f"Version {version_created.name} is pinned")
    body = {"version_id": version_created.name}
    return ProposedEvent(
        Draft(
            kind=events.VERSION_RETIRED,
            body=body,
            state_after=staged.live.state.value,
            series=events.RETIRED,
            number=version_created.number,
        )
    )


def pin(history: History, staged: Staged, version_id: str, kind: str) -> ProposedEvent:
    """Pins a listed version, or with VERSION_UNPINNED lets go of it."""
    named = history.event(version_id)
    if named.kind != events.VERSION_CREATED or not versions.is_listed(history.store, named):
        raise NotFound(f"Version {version_id} not found", param="version_id")
    return ProposedEvent(
        Draft(
            kind=kind,
            body={"version_id": named.name, "number": named.number},
            state_after=staged.live.state.value,
            series=events.PINS,
            number=versions.next_pin(history.store),
        )
    )


def rollback(history: History, staged: Staged, target: Position, cause: str) -> ProposedEvent:
    """The move to another state, rebuilt and verified on the side."""
    live = staged.live
    named = target.event if target.is_version else None
    if named and versions.is_listed(history.store, named):
        active = named.number
    else:
        active = versions.nearest(history.store, target.node)
    staged.check_untouched()
    changes = None
    if target.node != live.head.node:
        changes = staged.move(history, target.node, target.state)
    body = {
        "to": target.text,
        "to_event": target.event.seq,
        "to_seq": target.node,
        "from_seq": live.head.state_seq,
        "version_id": named.name if named else None,
        "cause": cause,
    }
    draft = Draft(
        kind=events.ROLLED_BACK,
        body=body,
        state_after=target.state,
        target_node=target.node,
        active=active,
    )
    return ProposedEvent(draft, changes=changes)


def answer(live: LiveState, refused: Event, reason: str) -> Draft:
    """The rollback of an event that a remote engine could not be brought to.

    The live state is still the one before it.
    """
    body = {
        "to": f"seq:{live.head.state_seq}",
        "to_event": live.head.state_seq,
        "to_seq": live.head.node,
        "from_seq": refused.state_seq,
        "version_id": None,
        "cause": PUBLISH_FAILED,
        "reason": reason,
    }
    return Draft(
        kind=events.ROLLED_BACK,
        body=body,
        state_after=live.state.value,
        target_node=live.head.node,
        active=live.head.active,
    )


def _written(staged: Staged, name: str, write: Write) -> TensorWrite:
    spec, before = staged.live.state.specs[name], staged.tensor(name)
    factors = write.factors
    if factors is not None and factors.nbytes > _WORTHWHILE_FACTORS * spec.nbytes:
        factors = None  # reversible differences are worth more than the few bytes saved
    return TensorWrite(spec, before, write.after, staged.chunks(name), write.positions, factors)


def _whole(
    history: History, staged: Staged, name: str, after: torch.Tensor | None
) -> tuple[TensorChange, Mapping[bytes, Buffer]]:
    """The change of a tensor outside of the weights, and the blobs it needs."""
    state = staged.live.state
    blobs: dict[bytes, Buffer] = {}
    spec_before, before = state.specs.get(name), state.digests.get(name)
    if before is not None and history.blobs.missing([before]):
        blobs[before] = lanes(staged.tensor(name), name).view(np.uint8)
    spec_after, digest = None, None
    if after is not None:
        spec_after = spec_of(name, after)
        data = lanes(after, name).view(np.uint8)
        digest = content_digest(data)
        blobs[digest] = data
    changed = max((spec.numel for spec in (spec_before, spec_after) if spec), default=0)
    change = TensorChange(name, before, digest, 0, changed, WHOLE, spec_before, spec_after)
    return change, blobs


def _both(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    """The positions of either; None when one of them is everywhere."""
    if one is None or other is None:
        return None
    both: torch.Tensor = torch.unique(torch.cat((one, other)))
    return both


def _joined(one: Verdict, other: Verdict) -> Verdict:
    return Verdict(
        {**one.pre_metrics, **other.pre_metrics},
        {**one.post_metrics, **other.post_metrics},
        one.reason or other.reason,
        {**one.evidence, **other.evidence},
    )


def _norm(recorded: Sequence[Recorded]) -> float | None:
    """The L2 norm of all differences together; None where it is not a finite number."""
    norms = [one.delta_norm for one in recorded]
    finite = [norm for norm in norms if norm is not None]
    total = math.hypot(*finite)
    return total if len(finite) == len(norms) and math.isfinite(total) else None


def _rejection(staged: Staged, facts: Mapping[str, Any], verdict: Verdict) -> ProposedEvent:
    body = {
        **facts,
        "reason": verdict.reason,
        "evidence": dict(verdict.evidence),
        "pre_metrics": dict(verdict.pre_metrics),
        "post_metrics": dict(verdict.post_metrics),
    }
    return _without_state_change(staged, events.UPDATE_REJECTED, body, events.UPDATES)


def _without_state_change(
    staged: Staged, kind: str, body: Mapping[str, Any], series: str
) -> ProposedEvent:
    active = events.THIS_VERSION if series == events.VERSIONS else events.KEEP_ACTIVE
    state = staged.live.state.value
    return ProposedEvent(
        Draft(kind=kind, body=body, state_after=state, series=series, active=active)
    )
