"""What legal holds do: placed on versions, and released."""

from weightledger.ledger import events
from weightledger.ledger.errors import InvalidRequest, NotFound, Pruned
from weightledger.ledger.events.bodies import HoldPlaced, HoldReleased, VersionCreated, body_of
from weightledger.ledger.history import holds
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import PlaceHold, Release
from weightledger.ledger.writing.proposed import ProposedEvent, stateless
from weightledger.ledger.writing.staged import Staged


def place(command: PlaceHold, staged: Staged) -> ProposedEvent:
    """Hold a version, listed or not; Pruned when gc dropped its state before."""
    _require_reason(command.caller)
    history = staged.history
    named = history.event(command.version_id)
    if named.kind != events.VERSION_CREATED:
        raise NotFound(f"Version {command.version_id} not found", param="version_id")
    names = body_of(named, VersionCreated).names
    if not history.ways.restorable(names.node):
        raise Pruned(
            f"gc dropped what version {named.name} needs, so there is nothing left to hold",
            seq=named.seq,
        )
    assert named.number is not None
    body = HoldPlaced(named.name, named.number, names.node, names.state)
    return stateless(staged, body, number=holds.next_number(history.store))


def release(command: Release, staged: Staged) -> ProposedEvent:
    """Release one hold; InvalidRequest when it has been."""
    _require_reason(command.caller)
    hold = holds.find(staged.history.store, command.hold_id)
    if not hold.stands:
        raise InvalidRequest(
            f"{hold.id} was released already, by {hold.released_by}", param="hold_id"
        )
    return stateless(staged, HoldReleased(hold.what.version_id), number=hold.number)


def _require_reason(caller: Caller) -> None:
    if not (caller.reason or "").strip():
        raise InvalidRequest("a hold says why, when it is placed and when released", param="reason")
