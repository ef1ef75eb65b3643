"""What monitoring records beside state changes: verdicts, and which policy rules."""

from weightledger.ledger import events
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies import PolicyChanged, body_of
from weightledger.ledger.history.intact import newest, skipped
from weightledger.ledger.writing.commands import ChangePolicy, Observe
from weightledger.ledger.writing.proposed import ProposedEvent, stateless
from weightledger.ledger.writing.staged import Staged

FIRST_POLICY = "specification"
"""What rules a log that no change of policy is recorded in."""

UNKNOWN_POLICY = "unknown"
"""What ruled before, where the event that said so is damaged."""


def observe(command: Observe, staged: Staged) -> ProposedEvent:
    """A verdict on an earlier event."""
    staged.history.require(command.body.of)
    return stateless(staged, command.body)


def change_policy(command: ChangePolicy, staged: Staged) -> ProposedEvent | Event:
    """The change; where there is none, the event since which that policy rules.

    Where the last change is damaged it is not known what ruled, so what rules is recorded anew.
    """
    instead = f"that policy {command.policy} rules is recorded anew"
    last = next(iter(newest(staged.history, [events.POLICY_CHANGED], 1, instead)), None)
    before = FIRST_POLICY
    if last is not None:
        try:
            known = body_of(last, PolicyChanged) if isinstance(last, Event) else None
        except CorruptLedger as error:
            known = None
            skipped(error, instead)
        before = UNKNOWN_POLICY if known is None else known.policy
    if before == command.policy:
        return last if isinstance(last, Event) else staged.history.require(0)
    return stateless(staged, PolicyChanged(command.policy, before, command.rules))
