"""The two-person rule: a write is asked for by one person and carried out once another approves.

What waits is the command as data, in an event of its own. Deciding is an event with the request's
number, of which there can be one. Carrying out uses an idempotency key of the request, so whoever
tries it, again after a crash or twice at a time, does it once.
"""

from dataclasses import replace

from msgspec import structs

from weightledger.ledger.errors import (
    AwaitingApproval,
    Conflict,
    InvalidRequest,
    LedgerError,
    NotAllowed,
)
from weightledger.ledger.events import APPROVALS, Event
from weightledger.ledger.events.bodies import ApprovalDecided, ApprovalLapsed, ApprovalRequested
from weightledger.ledger.history import approvals
from weightledger.ledger.history.trials import ABORTED, BY_PERSON
from weightledger.ledger.store.attached import Attached
from weightledger.ledger.writing.approval_commands import Decide, Lapse, RequestApproval
from weightledger.ledger.writing.commands import (
    ChangePolicy,
    Command,
    CreateInitialVersion,
    CreateVersion,
    Observe,
    Retire,
    RollBack,
)
from weightledger.ledger.writing.handlers.rollouts import HEAD, running
from weightledger.ledger.writing.payload import PayloadWriter
from weightledger.ledger.writing.policy import Policy
from weightledger.ledger.writing.proposed import ProposedEvent, stateless
from weightledger.ledger.writing.rollout_commands import AdvanceRollout, EndRollout, StartRollout
from weightledger.ledger.writing.staged import Staged
from weightledger.ledger.writing.stored_commands import store

# What the ledger does by itself, and the rule's own commands. Whatever else there is waits, and
# what cannot be stored is refused then.
_ITS_OWN = (CreateInitialVersion, Observe, ChangePolicy, RequestApproval, Decide, Lapse)

_BY_HAND = ("manual", ABORTED)  # causes of what a person asked for


def held_back(command: Command, policy: Policy) -> Command:
    """The command, or under the two-person rule the request that takes its place.

    What the ledger does by itself (automatic versions, their end,
    rollbacks of what got worse, the end of a rollout by a policy) does not wait.
    """
    if not policy.two_person or (isinstance(command, _ITS_OWN) and not _promotes(command)):
        return command
    if isinstance(command, RollBack | Retire | EndRollout) and command.cause not in _BY_HAND:
        return command
    if command.caller.actor is None:
        if isinstance(command, CreateVersion):  # an automatic one
            return command
        raise InvalidRequest("under the two-person rule a write says who asks", param="actor")
    return RequestApproval(command)


def _promotes(command: Command) -> bool:
    """Whether it is a person's word that a state on trial stays."""
    return isinstance(command, Observe) and command.body.evidence.get("decided_by") == BY_PERSON


def request(command: RequestApproval, staged: Staged) -> ProposedEvent:
    """The event that says what waits, with the tensors that it needs."""
    options, data = store(_pinned(command.command, staged))
    last = staged.history.store.last_number(APPROVALS)
    body = ApprovalRequested(options, command.caller.expected_seq)
    proposed = stateless(staged, body, number=0 if last is None else last + 1)
    payload = PayloadWriter(staged.history.blobs)
    if data:
        payload.write(data)
    refs, inline, blobs = payload.finish()
    draft = structs.replace(proposed.draft, payload=refs)
    return structs.replace(proposed, draft=draft, attached=Attached((), inline, blobs))


def _pinned(asked: Command, staged: Staged) -> Command:
    """The command about what it names now, wherever the log has got to by then.

    A rollout of "head" is about what is to come.
    """
    if isinstance(asked, RollBack) or (isinstance(asked, StartRollout) and asked.to != HEAD):
        position = staged.history.resolve(asked.to)
        to = position.text if position.is_version else f"seq:{position.event.seq}"
        return replace(asked, to=to)
    if isinstance(asked, AdvanceRollout | EndRollout):
        return replace(asked, rollout=running(staged, asked.rollout).id)
    return asked


def answer(approval: approvals.Approval) -> Event | LedgerError:
    """What whoever asked is told: that it waits; or, asking again later on, what became of it."""
    if approval.outcome is not None:
        return approval.outcome
    if approval.state in ("rejected", "lapsed"):
        why = approval.lapse.body["cause"] if approval.lapse else f"by {approval.decided_by}"
        return NotAllowed(f"{approval.id} was {approval.state}: {why}")
    return AwaitingApproval(
        f"{approval.id} waits for somebody else than {approval.requested_by!r} to approve it",
        approval_id=approval.id,
    )


def decide(command: Decide, staged: Staged) -> ProposedEvent:
    """The decision of somebody who did not ask."""
    approval = approvals.find(staged.history.store, command.approval_id)
    if approval.state != "pending":
        raise Conflict(f"{approval.id} is {approval.state} already, by {approval.decided_by}")
    actor = command.caller.actor
    if actor is None:
        raise InvalidRequest("a decision says who takes it", param="actor")
    if approval.requested_by is None:
        raise NotAllowed(f"{approval.id}: who asked was redacted, so nobody can be told apart")
    if actor == approval.requested_by:
        raise NotAllowed(f"{approval.id} was asked for by {actor!r}: it takes a second person")
    return stateless(staged, ApprovalDecided(command.approved), number=approval.number)


def lapse(command: Lapse, staged: Staged) -> ProposedEvent | Event:
    """The end of a write that was approved and cannot be carried out."""
    approval = approvals.find(staged.history.store, command.approval_id)
    if approval.lapse is not None:
        return approval.lapse
    return stateless(staged, ApprovalLapsed(command.cause), number=approval.number)
