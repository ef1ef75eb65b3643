"""What happens to a model, as lines of a log: one for each event of this process.

The logger is the manager's, since that is where people look for what a manager did.
"""

import logging

from weightledger.ledger import events
from weightledger.ledger.events import Event
from weightledger.ledger.writing.showing import Committed

LOGGER = "weightledger.ledger.manager"

_DONE = {
    events.REGISTERED: "registered",
    events.UPDATED: "applied",
    events.UPDATE_REJECTED: "refused",
    events.ROLLED_BACK: "rolled back",
    events.ADAPTER_LOADED: "loaded an adapter",
    events.ADAPTER_UNLOADED: "unloaded an adapter",
    events.POLICY_CHANGED: "ruled by another policy",
}
# Verdicts that somebody has to look at.
_ALERTS = frozenset({"inconclusive", "held_back", "superseded", "drift"})
_QUIET = (events.VERSION_RETIRED,)

logger = logging.getLogger(LOGGER)


def record(committed: Committed) -> None:
    """Say what was appended, with seq, actor and request id; alerts are warnings."""
    event = committed.event
    level = logging.WARNING if is_alert(event) else logging.INFO
    if event.kind in _QUIET:
        level = logging.DEBUG
    if not logger.isEnabledFor(level):
        return
    actor = committed.annotation.actor
    told = f"seq {event.seq}" if actor is None else f"seq {event.seq}, actor {actor}"
    # Last, since it is the first that a narrow terminal may do without.
    request = f" [request_id {event.request_id}]" if event.request_id else ""
    facts = {"seq": event.seq, "actor": actor, "request_id": event.request_id}
    done = _DONE.get(event.kind, event.kind.replace("_", " "))
    logger.log(
        level,
        "%s: %s %s (%s)%s%s",
        event.model,
        done,
        event.name,
        told,
        _why(event),
        request,
        extra={"model": event.model, "event": event.name, "kind": event.kind, **facts},
    )


def is_alert(event: Event) -> bool:
    """Whether an event is one that somebody should know of at once."""
    if event.kind == events.ROLLED_BACK:
        return "evidence" in event.body
    return event.kind == events.UPDATE_REJECTED or (
        event.kind == events.OBSERVED and event.body["verdict"] in _ALERTS
    )


def _why(event: Event) -> str:
    """What is particular to the event, for whoever reads the line."""
    body = event.body
    if event.kind == events.UPDATE_REJECTED:
        return f": {body['reason']}"
    if event.kind == events.ROLLED_BACK:
        reason = f", {body['reason']}" if body.get("reason") else ""
        return f": to {body['to']}, {body['cause']}{reason}"
    if event.kind == events.OBSERVED:
        return f": event {body['of']} is {body['verdict']}: {body['reason']}"
    if event.kind == events.POLICY_CHANGED:
        return f": {body['policy']}, before {body['before']}"
    if event.kind in (events.ADAPTER_LOADED, events.ADAPTER_UNLOADED):
        return f": {body['adapter']}"
    if event.kind == events.UPDATED and body.get("parameter"):
        return f": {body['parameter']}"
    return ""
