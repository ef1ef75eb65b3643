"""A proposed event: what a command comes to, before the log gives it a place."""

import msgspec

from weightledger.ledger import events
from weightledger.ledger.events import Draft
from weightledger.ledger.events.bodies import EventBody
from weightledger.ledger.projection.change import Change
from weightledger.ledger.store.attached import NOTHING, Attached
from weightledger.ledger.writing.staged import Staged


class ProposedEvent(msgspec.Struct, frozen=True):
    """One event as a command leads to it: the draft, what it brings with it, what to show then.

    `change` is None when no tensor changes. With `more` the command is handled once more on the
    state after this event, and both go into one transaction. The last of a command's events bears
    the caller's words; with `worded` this one does, too.
    """

    draft: Draft
    attached: Attached = NOTHING
    change: Change | None = None
    more: bool = False
    worded: bool = False


def stateless(
    staged: Staged, body: EventBody, *, number: int | None = None, more: bool = False
) -> ProposedEvent:
    """An event that changes no state."""
    active = events.THIS_VERSION if body.SERIES == events.VERSIONS else events.KEEP_ACTIVE
    draft = Draft(body, staged.live.state.value, number=number, active=active)
    return ProposedEvent(draft, more=more)
