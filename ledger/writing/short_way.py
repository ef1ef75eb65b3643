"""The short way of a small update: worked out, recorded and proposed in one go.

For one update of all of a float32 tensor of a few kilobytes in memory, whose guard, if there is
one, needs no candidate, and which no replica prepares: what comes alone is nearly always of that
kind. `handlers.updates` and `proposing` come to the same by calls and objects that take longer than
what they are for. A property test holds that both ways lead to equal headers, bits and digests;
whatever is unusual takes the long one.
"""

import math

import torch

from weightledger.ledger import interrupts
from weightledger.ledger.events import BlobRef, Draft
from weightledger.ledger.events.bodies import Updated
from weightledger.ledger.events.bodies.operands import Operands
from weightledger.ledger.events.kinds import IN_PAYLOAD
from weightledger.ledger.projection.change import Change
from weightledger.ledger.store.attached import Attached
from weightledger.ledger.tensors.digest import CHUNK_BYTES, content_digest
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import WEIGHTS
from weightledger.ledger.writing.arithmetic import moved_quickly
from weightledger.ledger.writing.keeping import SMALL_BYTES, described
from weightledger.ledger.writing.policy import UNJUDGED
from weightledger.ledger.writing.proposed import ProposedEvent
from weightledger.ledger.writing.proposing import NOT_EVALUATED, evidence_of, refusal
from weightledger.ledger.writing.small_encoding import changed_small
from weightledger.ledger.writing.staged import Staged
from weightledger.ledger.writing.update_commands import ApplyUpdates

_OPERAND = "0/operand"


def proposed_at_once(command: ApplyUpdates, staged: Staged) -> ProposedEvent | None:
    """The event of an update, or None where it is for the long way to say what it comes to.

    Raises WeightsChangedOutside and Unavailable as that does, and whatever the guard raises.
    """
    policy, update = staged.policy, command.updates[0]
    guard, operand = policy.guard, update.operand
    if (
        command.batch
        or (guard is not None and guard.alone)
        or policy.prepare is not None
        or policy.operands == "none"
        or type(operand) is not torch.Tensor
        or update.spec.dtype != "float32"
        or not 0 < update.spec.nbytes <= CHUNK_BYTES
        or operand.nbytes > SMALL_BYTES
    ):
        return None
    staged.make_room()
    bare = update.spec.name
    name = WEIGHTS + bare
    before = staged.hashed(name)
    after = moved_quickly(command.updates, before.tensor)
    if after is None or not before.tensor.is_contiguous():
        return None
    staged.check_untouched((bare,))
    change, new, norm, frame = changed_small(name, before, after)
    if not change.changed or change.after is None:
        return None
    live = staged.live
    state = live.state.with_digests({name: change.after})
    shown = Change({name: new}, state, live.auxiliary)
    verdict, evidence = UNJUDGED, NOT_EVALUATED
    if guard is not None:
        with interrupts.let_through():
            verdict = guard(shown)
        if verdict.reason is not None:
            return refusal(staged, update.facts, verdict)
        evidence = evidence_of(verdict)
    payload = frame + lanes(operand).tobytes()
    kept = described(_OPERAND, operand.dtype, operand.shape)
    body = Updated(
        update.facts,
        (change,),
        norm if math.isfinite(norm) else None,
        verdict.pre_metrics,
        verdict.post_metrics,
        evidence,
        operands=Operands(IN_PAYLOAD, (kept,)),
    )
    draft = Draft(body, state.value, payload=(BlobRef(content_digest(payload), len(payload)),))
    return ProposedEvent(draft, Attached((name,), payload), shown)
