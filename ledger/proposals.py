"""What a write wants to append: pure preparation, nothing durable and nothing visible yet.

Each function looks at the live state, computes and encodes, and returns a Proposal; `ledger.log`
commits it or, when another writer was faster, asks for it again on the newer state.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ledger import events, versions
from ledger.deltas import Recorded, record_tensor, same_bits
from ledger.errors import NotFound
from ledger.events import Draft, Event
from ledger.history import History
from ledger.payload import EMPTY, Payload, PayloadWriter
from ledger.positions import Position
from ledger.projector import Changes, Projector
from ledger.tensors import WEIGHTS, clone
from ledger.updates import NonFiniteResult, Update, compute

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
"""Judges a candidate, which is prepared but not visible, before its event is appended."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One round of a write: the draft, its payload, and what to show once it is durable.

    `parameters` are the full state names that the event counts as an update of; `changes` is
    None when no tensor changes.
    """

    draft: Draft
    payload: Payload = EMPTY
    parameters: Sequence[str] = ()
    changes: Changes | None = None


def update(
    history: History, projector: Projector, request: Update, guard: Guard | None
) -> Proposal:
    """One parameter's update, or its refusal by the guard or for a result that is not finite."""
    name = WEIGHTS + request.spec.name
    projector.engine.check_untouched()
    payload = PayloadWriter(history.blobs)
    try:
        after = compute(request, projector.tensor(name))
    except NonFiniteResult as error:
        verdict = Verdict(reason=f"Automatic rollback: {error}", evidence={"cause": "non_finite"})
        return _rejection(projector, request, verdict)
    recorded = _record(history, projector, name, after, payload)
    changes = _changes(projector, [recorded])
    verdict = guard(changes) if guard else Verdict()
    if verdict.reason is not None:
        return _rejection(projector, request, verdict)
    body = {
        **request.facts,
        "delta_norm": recorded.delta_norm,
        "pre_metrics": dict(verdict.pre_metrics),
        "post_metrics": dict(verdict.post_metrics),
    }
    return _updated(body, [recorded], payload.finish(), changes, [name])


def record(history: History, projector: Projector, tensors: Mapping[str, torch.Tensor]) -> Proposal:
    """The difference between the live state and `tensors` (by bare name), as one event."""
    projector.engine.check_untouched()
    payload = PayloadWriter(history.blobs)
    recorded: list[Recorded] = []
    for name in projector.specs:
        if same_bits(projector.tensor(WEIGHTS + name), tensors[name], projector.specs[name]):
            continue
        # The caller may go on changing its tensor meanwhile, so what is recorded is a copy.
        one = _record(history, projector, WEIGHTS + name, clone(tensors[name]), payload)
        if one.change.changed:
            recorded.append(one)
    changes = _changes(projector, recorded)
    touched = [one.change.name for one in recorded]
    return _updated({"operation": "record"}, recorded, payload.finish(), changes, touched)


def version(projector: Projector, named: Event, facts: Mapping[str, Any]) -> Proposal:
    """A name for the state after the event `named`."""
    names = {"seq": named.state_seq, "node": named.node, "state": named.state_after.hex()}
    return _without_state_change(
        projector, events.VERSION_CREATED, {**facts, "names": names}, events.VERSIONS
    )


def retirement(history: History, projector: Projector, version_created: Event) -> Proposal:
    """Takes a version's name off the list; NotFound when another writer already has."""
    if not versions.is_listed(history.store, history.model_id, version_created):
        raise NotFound(f"Version {version_created.name} is retired already")
    body = {"version_id": version_created.name}
    return Proposal(
        Draft(
            kind=events.VERSION_RETIRED,
            body=body,
            state_after=projector.live.state.value,
            series=events.RETIRED,
            number=version_created.number,
        )
    )


def rollback(history: History, projector: Projector, target: Position, cause: str) -> Proposal:
    """The move to another state, rebuilt and verified on the side."""
    live = projector.live
    named = target.event if target.is_version else None
    store, model_id = history.store, history.model_id
    if named and versions.is_listed(store, model_id, named):
        active = named.number
    else:
        active = versions.nearest(store, model_id, history.lineage, target.node)
    projector.engine.check_untouched()
    changes = None
    if target.node != live.head.node:
        changes = projector.move(history, target.node, target.state)
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
    return Proposal(draft, changes=changes)


def answer(projector: Projector, refused: Event, reason: str) -> Draft:
    """The rollback of an event that a remote engine could not be brought to.

    The live state is still the one before it.
    """
    live = projector.live
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


def _record(
    history: History,
    projector: Projector,
    name: str,
    after: torch.Tensor,
    payload: PayloadWriter,
) -> Recorded:
    spec = projector.live.state.specs[name]
    before, chunks = projector.tensor(name), projector.chunks(name)
    return record_tensor(spec, before, after, chunks, payload, history.pool)


def _changes(projector: Projector, recorded: Sequence[Recorded]) -> Changes:
    changed = [one for one in recorded if one.change.changed]
    return Changes(
        prepared=projector.engine.prepare(
            {one.change.name.removeprefix(WEIGHTS): one.after for one in changed}
        ),
        chunks={one.change.name: one.chunks for one in changed},
        state=projector.live.state.with_digests(
            {one.change.name: one.change.after for one in changed}
        ),
    )


def _updated(
    body: Mapping[str, Any],
    recorded: Sequence[Recorded],
    payload: Payload,
    changes: Changes,
    parameters: Sequence[str],
) -> Proposal:
    tensors = [one.change.to_json() for one in recorded if one.change.changed]
    draft = Draft(
        kind=events.UPDATED,
        body={**body, "tensors": tensors},
        state_after=changes.state.value,
        series=events.UPDATES,
    )
    return Proposal(draft, payload, parameters, changes)


def _rejection(projector: Projector, request: Update, verdict: Verdict) -> Proposal:
    body = {
        **request.facts,
        "reason": verdict.reason,
        "evidence": dict(verdict.evidence),
        "pre_metrics": dict(verdict.pre_metrics),
        "post_metrics": dict(verdict.post_metrics),
    }
    return _without_state_change(projector, events.UPDATE_REJECTED, body, events.UPDATES)


def _without_state_change(
    projector: Projector, kind: str, body: Mapping[str, Any], series: str
) -> Proposal:
    active = events.THIS_VERSION if series == events.VERSIONS else events.KEEP_ACTIVE
    state = projector.live.state.value
    return Proposal(Draft(kind=kind, body=body, state_after=state, series=series, active=active))
