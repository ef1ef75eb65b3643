"""What stands on the pages: read from the same functions as the REST API's replies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightledger import DynamicModelManager, Log
from weightledger.api.dashboard.grouping import Run, runs
from weightledger.api.dashboard.states import tree_picture
from weightledger.api.items import approval_item, event_item, trial_item, version_item
from weightledger.ledger.events import (
    ROLLED_BACK,
    UPDATE_REJECTED,
    UPDATED,
    VERSION_CREATED,
    Event,
)
from weightledger.ledger.history.positions import Position
from weightledger.ledger.history.reader import History
from weightledger.ledger.store import Activity

Item = Mapping[str, Any]

_GLYPHS = {
    UPDATED: ("●", "applied"),
    UPDATE_REJECTED: ("▲", "refused"),
    ROLLED_BACK: ("◀", "rolled-back"),
    VERSION_CREATED: ("◆", "version"),
}
_OTHER_GLYPH = ("·", "other")

TREE_STATES = 80
MOST_APPROVALS = 50
_MOST_LEFT_BEHIND = 200
_PAGE = 512


@dataclass(frozen=True, slots=True)
class Header:
    """The answer to "what is live", which stands above every page."""

    model: str
    version: str | None
    updates_since: int | None
    seq: int
    digest: str
    since: str
    actor: str | None
    fault: str | None
    lag_events: int
    last: int  # the last event that the page knows of


def header(manager: DynamicModelManager) -> Header:
    """What is served now, and whether it is what the log says."""
    history, live = manager.log.history, manager.log.live
    status = manager.get_status()
    event = items(history, [history.require(live.head.state_seq)])[0]
    return Header(
        model=manager.model_name,
        version=status["current_version"],
        updates_since=status["updates_since_version"],
        seq=live.head.state_seq,
        digest=live.state.value.hex(),
        since=event["recorded_at"],
        actor=event["actor"],
        fault=manager.fault,
        lag_events=history.head().seq - live.head.seq,
        last=live.head.seq,
    )


def items(history: History, events: Sequence[Event]) -> list[dict[str, Any]]:
    """Events as the REST API shows them, with the mark that they get on a page."""
    notes = history.store.annotations([event.seq for event in events])
    return [marked(event_item(event, notes.get(event.seq))) for event in events]


def marked(item: dict[str, Any]) -> dict[str, Any]:
    """An event with its glyph and the class of its colour."""
    glyph, look = _GLYPHS.get(item["kind"], _OTHER_GLYPH)
    return {**item, "glyph": glyph, "look": look}


def versions(history: History) -> list[dict[str, Any]]:
    """Listed versions, newest first."""
    return [version_item(version) for version in history.versions()]


def trials(manager: DynamicModelManager) -> list[dict[str, Any]]:
    """The trial that runs and the last that ended, newest first."""
    return [trial_item(trial) for trial in manager.trials()]


def approvals(log: Log) -> list[dict[str, Any]]:
    """Writes that wait for a second person, or did, newest first."""
    return [approval_item(approval) for approval in log.approvals(limit=MOST_APPROVALS)]


def grouped(events: Sequence[Item], listed: Sequence[Item]) -> list[Run]:
    """Events with runs of updates folded; a state that has a name stands by itself."""
    return list(runs(events, {version["seq"] for version in listed}))


def tree(history: History, live: int, listed: Sequence[Item], link: str, most: int) -> str:
    """The last states, drawn."""
    head = history.head().seq
    changes = [
        change
        for start in range(max(0, head - _PAGE), head + 1, _PAGE)
        for change in history.store.state_changes(start, min(start + _PAGE, head + 1))
    ]
    names = {version["seq"]: version["version_id"].split("_")[0] for version in listed}
    return tree_picture(changes[-most:], names, live, link)


@dataclass(frozen=True, slots=True)
class Rollback:
    """What going to a position would do, before it is done.

    `left_behind` are the events that the live state stands on and the target does not, newest
    first; `more` says that there are more of them.
    """

    target: Position
    left_behind: Sequence[Item]
    more: bool
    diff: Item
    then: Mapping[str, float]
    now: Mapping[str, float]


def rollback(manager: DynamicModelManager, to: str) -> Rollback:
    """A rollback as its dialog shows it; NotFound for a position that is not."""
    history = manager.log.history
    target = history.resolve(to)
    seqs = list(_left_behind(history, history.head().node, target.node))
    shown = [history.require(seq) for seq in seqs[:_MOST_LEFT_BEHIND]]
    event = history.require(target.node)
    return Rollback(
        target=target,
        left_behind=items(history, shown),
        more=len(seqs) > _MOST_LEFT_BEHIND,
        diff=manager.log.diff("head", to, ranks="none").to_json(),
        then=event.body.get("post_metrics", {}),
        now=manager.metrics(),
    )


def _left_behind(history: History, head: int, target: int) -> Iterator[int]:
    """Nodes above the head, itself included, down to the one that the target stands on too."""
    kept = set(_up(history, target, _MOST_LEFT_BEHIND * 20))
    for count, node in enumerate(_up(history, head, _MOST_LEFT_BEHIND * 20)):
        if node in kept or count > _MOST_LEFT_BEHIND:
            return
        yield node


def _up(history: History, node: int, most: int) -> Iterator[int]:
    at: int | None = node
    while at is not None and most > 0:
        yield at
        at, most = history.lineage.parent(at), most - 1


def days(counted: Sequence[Activity]) -> list[tuple[int, dict[str, int]]]:
    """Events by day, oldest first: the day since 1970, and how many of each kind."""
    of: dict[int, dict[str, int]] = {}
    for one in counted:
        kinds = of.setdefault(one.day, {})
        kinds[one.kind] = kinds.get(one.kind, 0) + one.events
    return sorted(of.items())
