"""From a plan to the event that carries it out: encode, judge, propose.

A plan says which values tensors are to have. Here its changes are recorded (compared, encoded,
decoded again, digested), the log's guard judges them, replicas prepare them where they have to, and
the event is drafted: applied or refused.
Nothing is durable and nothing is visible yet; the writer appends the proposal or, when another
writer was faster, asks for it again on the newer state.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace

from weightledger.ledger import events, interrupts
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
from weightledger.ledger.store.attached import Attached
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import lanes, spec_of
from weightledger.ledger.tensors.spec import WEIGHTS
from weightledger.ledger.writing.encoding import Recorded, Written, record_tensors
from weightledger.ledger.writing.keeping import keep
from weightledger.ledger.writing.payload import PayloadWriter
from weightledger.ledger.writing.plan import Plan, Write
from weightledger.ledger.writing.policy import Verdict
from weightledger.ledger.writing.preparing import prepared
from weightledger.ledger.writing.proposed import ProposedEvent, stateless
from weightledger.ledger.writing.staged import Staged

NOT_EVALUATED: Mapping[str, Any] = {"evaluated": False}
"""What an event says whose candidate nobody scored."""

# Factors above this share of the tensor's bytes are not worth an event that cannot be undone.
_WORTHWHILE_FACTORS = 0.25


def proposed(plan: Plan, staged: Staged) -> ProposedEvent:
    """The event of a plan, or its refusal by the plan itself or by the log's guard.

    The guard judges what is an update; adapters that come and go leave the weights as they are.
    """
    # A plan that was refused may have been so for weights that it does not name.
    staged.check_untouched(None if plan.verdict.reason is not None else plan.weights)
    if plan.verdict.reason is not None:
        return refusal(staged, plan.facts, plan.verdict)
    history = staged.history
    payload = PayloadWriter(history.blobs)
    writes = [_written(staged, WEIGHTS + name, write) for name, write in plan.weights.items()]
    recorded = record_tensors(writes, payload, history.pool)
    whole = [_whole(staged, name, tensor) for name, tensor in plan.auxiliary.items()]
    moved = [
        one for one, _ in whole if (one.before, one.spec_before) != (one.after, one.spec_after)
    ]
    change = staged.changed(recorded, moved, plan.auxiliary)
    verdict = plan.verdict
    guard = staged.policy.guard
    if guard is not None and plan.kind == events.UPDATED:
        if guard.alone:
            change = staged.prepare(change)
        with interrupts.let_through():
            found = guard(change)
        verdict = verdict.joined(found)
    if verdict.reason is not None:
        return refusal(staged, plan.facts, verdict)
    operands, blobs_of_operands = keep(plan.given, staged.policy.operands, payload)
    refs, inline, blobs = payload.finish()
    blobs.update(blobs_of_operands)
    for _, its in whole:
        blobs.update(its)
    changed = (*[one for one, _, _ in recorded if one.changed], *moved)
    parameters = [WEIGHTS + name for name in plan.weights]
    norm, state = _norm(recorded), change.state.value
    body = _body(plan, changed, norm, verdict, parameters, operands)
    draft = Draft(body, state, payload=refs)
    attached = Attached(parameters, inline, blobs)
    rule = staged.policy.prepare
    if rule is not None and plan.kind == events.UPDATED:
        verdict = verdict.joined(prepared(rule, staged, draft, attached))
        if verdict.reason is not None:
            return refusal(staged, plan.facts, verdict)
        body = _body(plan, changed, norm, verdict, parameters, operands)
        draft = replace(draft, body=body)
    return ProposedEvent(draft, attached, change)


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
        evidence_of(verdict),
        operands=operands,
    )
    if len(parameters) == 1 and parameters[0] == WEIGHTS + str(plan.facts.get("parameter")):
        return body
    told = counted_parameters({**plan.facts, "tensors": [{"name": one.name} for one in changed]})
    return body if told == list(parameters) else replace(body, counted=tuple(parameters))


def refusal(staged: Staged, facts: Mapping[str, Any], verdict: Verdict) -> ProposedEvent:
    """The event of an update that is refused, by its facts."""
    assert verdict.reason is not None
    rest = {name: fact for name, fact in facts.items() if name != "evidence"}
    evidence = evidence_of(verdict) or facts.get("evidence", {})
    body = UpdateRejected(rest, verdict.reason, verdict.pre_metrics, verdict.post_metrics, evidence)
    return stateless(staged, body)


def evidence_of(verdict: Verdict) -> dict[str, Any]:
    """What an event says of its verdict. Without a word on it, the candidate was evaluated."""
    evidence = dict(verdict.evidence)
    if not verdict.evaluated and verdict.reason is None:
        evidence |= NOT_EVALUATED
    return evidence


def _written(staged: Staged, name: str, write: Write) -> Written:
    spec, factors = staged.live.state.specs[name], write.factors
    if factors is not None and factors.nbytes > _WORTHWHILE_FACTORS * spec.nbytes:
        # Reversible differences are worth more than the few bytes saved.
        write = replace(write, factors=None)
    return spec, staged.hashed(name), write


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
        return recorded[0][2]
    norms = [norm for _, _, norm in recorded]
    finite = [norm for norm in norms if norm is not None]
    total = math.hypot(*finite)
    return total if len(finite) == len(norms) and math.isfinite(total) else None
