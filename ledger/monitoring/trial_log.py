"""Trials as the log tells them: the one that runs, and how earlier ones ended."""

from dataclasses import dataclass
from typing import Any

from weightledger.ledger import events
from weightledger.ledger.errors import NotFound
from weightledger.ledger.events import Event
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.trials import (
    ABORTED,
    LOOKED_AT,
    PROMOTED,
    is_promoted,
    on_trial,
    trial_of,
)
from weightledger.ledger.store import EventFilter

DEGRADED = "degraded"
"""Cause of a rollback that a policy asked for."""

TIMED_OUT = "timed_out"
"""Cause of the rollback of a trial that was not decided in time."""

RUNNING = "running"

_ROLLED_BACK = "rolled back"
_ENDS = {DEGRADED: _ROLLED_BACK, TIMED_OUT: "timed out", ABORTED: "aborted"}


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial: `of` is the seq of its newest update, `beside` that of the settled state.

    `started_at` is when that update was written and `ended_at` when the verdict was, None while it
    runs; both are UTC microseconds. `requests` are what the old and the new state served, None
    where the log does not say.
    """

    id: str
    status: str
    of: int
    beside: int
    share: float
    policy: str
    started_at: int
    ended_at: int | None = None
    requests: tuple[int, int] | None = None
    reason: str | None = None


def trials(history: History, limit: int) -> list[Trial]:
    """The trial that runs and the last that ended, newest first."""
    listed = []
    update = on_trial(history)
    if update is not None:
        listed.append(_trial(update, RUNNING))
    ends = EventFilter(kinds=[events.OBSERVED, events.ROLLED_BACK])
    for event in history.events(ends, limit=LOOKED_AT):
        if len(listed) >= limit:
            break
        ended = _ended(history, event)
        if ended is not None:
            listed.append(ended)
    return listed


def trial_named(history: History, trial: str) -> Trial:
    """The trial of that id, with or without its time; NotFound when the log has none lately."""
    for one in trials(history, LOOKED_AT):
        if is_called(one.id, trial):
            return one
    raise NotFound(f"trial {trial!r} not found", param="id")


def is_called(update: str, trial: str) -> bool:
    """Whether the trial of an update has this name: the update's id, with or without its time."""
    return trial in (update, update.rpartition("_")[0])


def _ended(history: History, event: Event) -> Trial | None:
    """The trial that an event ended; None for one that ended none."""
    if event.kind == events.OBSERVED:
        status = PROMOTED if event.body["verdict"] == PROMOTED else None
        of = event.body["of"]
    else:
        status, of = _ENDS.get(event.body["cause"]), event.body["from_seq"]
        if status is None:
            return _left(history, event)
    facts = event.body.get("evidence", {}).get("trial")
    if status is None or facts is None:
        return None
    return _trial(history.require(of), status, event, facts)


def _left(history: History, rollback: Event) -> Trial | None:
    """The trial that a rollback by hand ended; None where it left no state on trial."""
    update = history.require(rollback.body["from_seq"])
    if trial_of(update) is None or is_promoted(history, update.seq):
        return None
    return _trial(update, _ROLLED_BACK, rollback)


def _trial(
    update: Event, status: str, end: Event | None = None, facts: dict[str, Any] | None = None
) -> Trial:
    trial = facts or trial_of(update) or {}
    requests = trial.get("requests")
    return Trial(
        update.name,
        status,
        update.seq,
        trial["beside"],
        trial["share"],
        update.body.get("evidence", {}).get("policy", "unknown"),
        update.recorded_at,
        None if end is None else end.recorded_at,
        None if requests is None else (requests[0], requests[1]),
        None if end is None else end.body.get("reason"),
    )
