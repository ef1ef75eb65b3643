"""From a plan to the event that carries it out: encode, judge, propose.

A plan says which values tensors are to have. Here its changes are recorded (compared, encoded,
decoded again, digested), the log's guard judges them, replicas prepare them where they have to, and
the event is drafted: applied or refused.
Nothing is durable and nothing is visible yet; the writer appends the proposal or, when another
writer was faster, asks for it again on the newer state.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from weightledger.ledger import events
from weightledger.ledger.blobs import Buffer
from weightledger.ledger.events import Draft
from weightledger.ledger.events.bodies import (
    AdapterLoaded,
    AdapterUnloaded,
    EventBody,
    Updated,
    UpdateRejected,
    counted_parameters,
)
from weightledger.ledger.events.bodies.operands import Operands
from weightledger.ledger.events.changes import WHOLE, TensorChange
from weightledger.ledger.projection.projector import Changes
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import lanes, spec_of
from weightledger.ledger.tensors.spec import WEIGHTS
from weightledger.ledger.writing.encoding import Recorded, TensorWrite, Write, record_tensors
from weightledger.ledger.writing.given import Given
from weightledger.ledger.writing.keeping import keep
from weightledger.ledger.writing.payload import EMPTY, Payload, PayloadWriter
from weightledger.ledger.writing.policy import UNJUDGED, Verdict
from weightledger.ledger.writing.preparing import prepared
from weightledger.ledger.writing.staged import Staged

# Factors above this share of the tensor's bytes are not worth an event that cannot be undone.
_WORTHWHILE_FACTORS = 0.25


@dataclass(frozen=True, slots=True)
class Plan:
    """What one state-changing event is to do, worked out on the staged state.

    `facts` go into the event's body. `weights` maps bare names to new values; `auxiliary` maps
    full names outside of the weights (`rule/…`, `adapter/…`) to tensors, None to remove one.
    `verdict` is what was found before the guard is asked; one with a reason refuses the plan.
    `given` is what works it out again, None where its values came ready from elsewhere.
    """

    facts: Mapping[str, Any]
    weights: Mapping[str, Write] = field(default_factory=dict)
    auxiliary: Mapping[str, torch.Tensor | None] = field(default_factory=dict)
    kind: str = events.UPDATED
    verdict: Verdict = UNJUDGED
    given: Given | None = None


@dataclass(frozen=True, slots=True)
class ProposedEvent:
    """One event as a command leads to it: the draft, its payload, and what to show afterwards.

    `parameters` are the full state names that the event counts as an update of; `changes` is
    None when no tensor changes. With `more` the command is handled once more on the state after
    this event, and both go into one transaction. The last of a command's events bears the caller's
    words; with `worded` this one does, too.
    """

    draft: Draft
    payload: Payload = EMPTY
    parameters: Sequence[str] = ()
    changes: Changes | None = None
    more: bool = False
    worded: bool = False


def proposed(plan: Plan, staged: Staged) -> ProposedEvent:
    """The event of a plan, or its refusal by the plan itself or by the log's guard.

    The guard judges what is an update; adapters that come and go leave the weights as they are.
    """
    # A plan that was refused may have been so for weights that it does not name.
    staged.check_untouched(None if plan.verdict.reason is not None else plan.weights)
    if plan.verdict.reason is not None:
        return _refusal(staged, plan.facts, plan.verdict)
    history = staged.history
    payload = PayloadWriter(history.blobs)
    writes = [_written(staged, WEIGHTS + name, write) for name, write in plan.weights.items()]
    recorded = record_tensors(writes, payload, history.pool)
    whole = [_whole(staged, name, tensor) for name, tensor in plan.auxiliary.items()]
    moved = [change for change, _ in whole if change.before != change.after]
    changes = staged.changed(recorded, moved, plan.auxiliary)
    verdict = plan.verdict
    guard = staged.policy.guard
    if guard is not None and plan.kind == events.UPDATED:
        if guard.alone:
            changes = staged.prepare(changes)
        verdict = verdict.joined(guard(changes))
    if verdict.reason is not None:
        return _refusal(staged, plan.facts, verdict)
    operands, blobs_of_operands = keep(plan.given, staged.policy.operands, payload)
    finished = payload.finish()
    finished.blobs.update(blobs_of_operands)
    for _, blobs in whole:
        finished.blobs.update(blobs)
    changed = (*[one.change for one in recorded if one.change.changed], *moved)
    parameters = [WEIGHTS + name for name in plan.weights]
    norm, state = _norm(recorded), changes.state.value
    body = _body(plan, changed, norm, verdict, parameters, operands)
    rule = staged.policy.prepare
    if rule is not None and plan.kind == events.UPDATED:
        asked = Draft(body, state, payload=finished.refs)
        verdict = verdict.joined(prepared(rule, staged, asked, finished))
        if verdict.reason is not None:
            return _refusal(staged, plan.facts, verdict)
        body = _body(plan, changed, norm, verdict, parameters, operands)
    return ProposedEvent(Draft(body, state), finished, parameters, changes)


def stateless(
    staged: Staged, body: EventBody, *, number: int | None = None, more: bool = False
) -> ProposedEvent:
    """An event that changes no state."""
    active = events.THIS_VERSION if body.SERIES == events.VERSIONS else events.KEEP_ACTIVE
    draft = Draft(body, staged.live.state.value, number=number, active=active)
    return ProposedEvent(draft, more=more)


def _body(
    plan: Plan,
    changed: tuple[TensorChange, ...],
    norm: float | None,
    verdict: Verdict,
    parameters: Sequence[str],
    operands: Operands,
) -> EventBody:
    """What the event of a plan says."""
    if plan.kind != events.UPDATED:
        kind = AdapterLoaded if plan.kind == events.ADAPTER_LOADED else AdapterUnloaded
        return kind(plan.facts, changed)
    body = Updated(
        plan.facts,
        changed,
        norm,
        verdict.pre_metrics,
        verdict.post_metrics,
        _evidence(verdict),
        operands=operands,
    )
    if len(parameters) == 1 and parameters[0] == WEIGHTS + str(plan.facts.get("parameter")):
        return body
    told = counted_parameters({**plan.facts, "tensors": [{"name": one.name} for one in changed]})
    return body if told == list(parameters) else replace(body, counted=tuple(parameters))


def _refusal(staged: Staged, facts: Mapping[str, Any], verdict: Verdict) -> ProposedEvent:
    assert verdict.reason is not None
    rest = {name: fact for name, fact in facts.items() if name != "evidence"}
    evidence = _evidence(verdict) or facts.get("evidence", {})
    body = UpdateRejected(rest, verdict.reason, verdict.pre_metrics, verdict.post_metrics, evidence)
    return stateless(staged, body)


def _evidence(verdict: Verdict) -> dict[str, Any]:
    """What an event says of its verdict. Without a word on it, the candidate was evaluated."""
    evidence = dict(verdict.evidence)
    if not verdict.evaluated and verdict.reason is None:
        evidence["evaluated"] = False
    return evidence


def _written(staged: Staged, name: str, write: Write) -> TensorWrite:
    spec, factors = staged.live.state.specs[name], write.factors
    if factors is not None and factors.nbytes > _WORTHWHILE_FACTORS * spec.nbytes:
        # Reversible differences are worth more than the few bytes saved.
        write = replace(write, factors=None)
    before, chunks, checksums = staged.tensor(name), staged.chunks(name), staged.checksums(name)
    return TensorWrite(spec, before, chunks, write, checksums)


def _whole(
    staged: Staged, name: str, after: torch.Tensor | None
) -> tuple[TensorChange, Mapping[bytes, Buffer]]:
    """The change of a tensor outside of the weights, and the blobs it needs."""
    state = staged.live.state
    blobs: dict[bytes, Buffer] = {}
    spec_before, before = state.specs.get(name), state.digests.get(name)
    if before is not None and staged.history.blobs.missing([before]):
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


def _norm(recorded: Sequence[Recorded]) -> float | None:
    """The L2 norm of all differences together; None where it is not a finite number."""
    if len(recorded) == 1:
        return recorded[0].delta_norm
    norms = [one.delta_norm for one in recorded]
    finite = [norm for norm in norms if norm is not None]
    total = math.hypot(*finite)
    return total if len(finite) == len(norms) and math.isfinite(total) else None
