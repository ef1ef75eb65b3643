"""What is on trial, as the log tells it: a state that is live and not decided yet.

An update's event says which state it is tried beside; the verdict that it stays is an event, too.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from weightledger.ledger import events
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies import Observed, body_of
from weightledger.ledger.history.intact import newest, skipped
from weightledger.ledger.history.reader import History

PROMOTED = "promoted"
"""The verdict that a state on trial stays."""

ABORTED = "aborted"
"""Cause of the rollback of a trial that a person ended."""

BY_PERSON = "person"
"""Who decided, in the evidence of what a person asked for."""

LOOKED_AT = 200
"""Events that are looked through for the beginning or the end of a trial."""


def trial_of(update: Event) -> dict[str, Any] | None:
    """What an update's event says of its trial; None of one that is on none."""
    if update.kind != events.UPDATED:
        return None
    trial: dict[str, Any] | None = update.body.get("evidence", {}).get("trial")
    return trial


def is_promoted(history: History, of: int) -> bool:
    """Whether the log has the verdict that the state of a seq stays; a damaged one is none."""
    instead = f"if it is a verdict on event {of}, that one is still on trial"
    return of in _promoted(history, instead, min_seq=of)


def _promoted(history: History, instead: str, *, min_seq: int | None = None) -> Iterator[int]:
    """What the last verdicts say stays, newest first."""
    for event in newest(history, [events.OBSERVED], LOOKED_AT, instead, min_seq=min_seq):
        try:
            known = isinstance(event, Event) and body_of(event, Observed)
        except CorruptLedger as error:
            skipped(error, instead)
            continue
        if known and known.verdict == PROMOTED:
            yield known.of


def on_trial(history: History) -> Event | None:
    """The update that is live and undecided; None where every state that is live is settled.

    What no policy ruled on joins the trial that runs: adapters, and updates that were written
    without a server.
    """
    event = history.require(history.head().state_seq)
    undecided = _undecided(history, event, _settled.get(history))
    goes_on = event.node == event.seq  # where a rollback leads to need not be settled
    if undecided is None and goes_on:
        _settled[history] = event.node
    return undecided


def _undecided(history: History, event: Event, settled: int | None) -> Event | None:
    promoted: set[int] | None = None  # read once: there may be as many states to look at
    for _ in range(LOOKED_AT):
        if event.node == settled:
            return None
        trial = trial_of(event)
        if trial is None and not _joins(event):
            return None
        if promoted is None:
            promoted = set(_promoted(history, "what it is a verdict on is still on trial"))
        if event.seq in promoted:
            return None
        if trial is not None:
            return event
        parent = history.lineage.parent(event.node)
        if parent is None:
            return None
        event = history.require(parent)
    return None


# The last live state that was found settled, which it stays: what is written next begins there.
_settled: WeakKeyDictionary[History, int] = WeakKeyDictionary()


def held_nodes(history: History) -> set[int]:
    """The states that a trial leads back to, which have to stay restorable."""
    update = on_trial(history)
    trial = None if update is None else trial_of(update)
    return set() if trial is None else {history.require(trial["beside"]).node}


def _joins(event: Event) -> bool:
    if event.kind == events.UPDATED:
        return "policy" not in event.body.get("evidence", {})
    return event.kind in (events.ADAPTER_LOADED, events.ADAPTER_UNLOADED)
