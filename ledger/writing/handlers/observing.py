"""What monitoring records beside state changes: verdicts, and which policy rules."""

from weightledger.ledger import events
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies import PolicyChanged
from weightledger.ledger.store import EventFilter
from weightledger.ledger.writing.commands import ChangePolicy, Observe
from weightledger.ledger.writing.plans import ProposedEvent, stateless
from weightledger.ledger.writing.staged import Staged

FIRST_POLICY = "specification"
"""What rules a log that no change of policy is recorded in."""


def observe(command: Observe, staged: Staged) -> ProposedEvent:
    """A verdict on an earlier event."""
    staged.history.require(command.body.of)
    return stateless(staged, command.body)


def change_policy(command: ChangePolicy, staged: Staged) -> ProposedEvent | Event:
    """The change; where there is none, the event since which that policy rules."""
    last = staged.history.events(EventFilter(kinds=[events.POLICY_CHANGED]), limit=1)
    before = last[0].body["policy"] if last else FIRST_POLICY
    if before == command.policy:
        return last[0] if last else staged.history.require(0)
    return stateless(staged, PolicyChanged(command.policy, before, command.rules))
