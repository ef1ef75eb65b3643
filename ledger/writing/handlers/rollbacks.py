"""What rolling back does: the model moves to another state of its log."""

from weightledger.ledger import events
from weightledger.ledger.events import Draft, Event
from weightledger.ledger.events.bodies import RolledBack, body_of
from weightledger.ledger.history import versions
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.projector import LiveState
from weightledger.ledger.writing.commands import RollBack
from weightledger.ledger.writing.proposed import ProposedEvent
from weightledger.ledger.writing.staged import Staged

PUBLISH_FAILED = "publish_failed"
"""Cause of a `rolled_back` event that answers the event before it."""


def roll_back(command: RollBack, staged: Staged) -> ProposedEvent:
    """The move to another state, rebuilt and verified on the side. No guard is asked: being back
    at a known state is the remedy."""
    history, live = staged.history, staged.live
    target = history.resolve(command.to)
    named = target.event if target.is_version else None
    store = history.store
    if named and versions.is_listed(store, named):
        active = named.number
    else:
        active = versions.nearest(store, target.node)
    staged.check_untouched()
    change = None
    if target.node != live.head.node:
        change = staged.move(target.node, target.state)
    body = RolledBack(
        to=target.text,
        to_event=target.event.seq,
        to_seq=target.node,
        from_seq=live.head.state_seq,
        version_id=named.name if named else None,
        cause=command.cause,
        reason=command.why,
        evidence=command.evidence,
    )
    draft = Draft(
        body=body,
        state_after=target.state,
        target_node=target.node,
        active=active,
    )
    return ProposedEvent(draft, change=change)


def answer(live: LiveState, refused: Event, reason: str) -> Draft:
    """The rollback of an event that a remote engine could not be brought to.

    The live state is still the one before it.
    """
    body = RolledBack(
        to=f"seq:{live.head.state_seq}",
        to_event=live.head.state_seq,
        to_seq=live.head.node,
        from_seq=refused.state_seq,
        version_id=None,
        cause=PUBLISH_FAILED,
        reason=reason,
    )
    return Draft(
        body=body,
        state_after=live.state.value,
        target_node=live.head.node,
        active=live.head.active,
    )


def answer_to(history: History, event: Event) -> Event | None:
    """The rollback that answered an event which could not be shown, if one did."""
    after = history.store.event(event.seq + 1)
    if after is None or after.kind != events.ROLLED_BACK:
        return None
    return after if body_of(after, RolledBack).cause == PUBLISH_FAILED else None
