"""What stands on the pages: read from the same functions as the REST API's replies."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightledger import DynamicModelManager, Log
from weightledger.api.dashboard.grouping import Run, runs
from weightledger.api.dashboard.states import TreeLinks, tree_picture
from weightledger.api.items import (
    approval_item,
    event_item,
    key_item,
    replica_item,
    trial_item,
    version_item,
)
from weightledger.ledger.audit import marks
from weightledger.ledger.audit.notary import Notary
from weightledger.ledger.events import (
    OBSERVED,
    ROLLED_BACK,
    UPDATE_REJECTED,
    UPDATED,
    VERSION_CREATED,
    Event,
)
from weightledger.ledger.fleet.served import fleet
from weightledger.ledger.history.positions import Position
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.versions import updates_since
from weightledger.ledger.store import EventFilter

Item = Mapping[str, Any]
Names = Mapping[int, Sequence[Item]]
"""Versions by the seq of the state that they name."""

_GLYPHS = {
    UPDATED: ("●", "applied"),
    UPDATE_REJECTED: ("▲", "refused"),
    ROLLED_BACK: ("◀", "rolled-back"),
    VERSION_CREATED: ("◆", "version"),
}
_OTHER_GLYPH = ("·", "other")

MOST_APPROVALS = 50
_TREE_EVENTS = 512  # that are looked at for the tree
_TREE_STATES = 32
_MOST_LEFT_BEHIND = 200
_LOOKED_AT = 100  # verdicts, for those of one event


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


def header(manager: DynamicModelManager) -> Header:
    """What is served now, and whether it is what the log says."""
    log = manager.log
    store, live = log.history.store, log.live
    last = store.head()
    active = None if last.active is None else store.listed_version(last.active)
    named = None if active is None else store.event(active.seq)
    changed = live.head.state_seq
    event = live.head if live.head.seq == changed else log.history.require(changed)
    shown = items(log.history, [event])[0]
    return Header(
        model=manager.model_name,
        version=None if named is None else named.name,
        updates_since=None if active is None else updates_since(store, active, last),
        seq=live.head.state_seq,
        digest=live.state.value.hex(),
        since=shown["recorded_at"],
        actor=shown["actor"],
        fault=manager.fault,
        lag_events=max(0, last.seq - live.head.seq),
    )


def items(history: History, events: Sequence[Event]) -> list[dict[str, Any]]:
    """Events as the REST API shows them, with the mark that they get on a page."""
    notes = history.store.annotations([event.seq for event in events])
    return [marked(event_item(event, notes.get(event.seq))) for event in events]


def marked(item: dict[str, Any]) -> dict[str, Any]:
    """An event with its glyph and the class of its colour."""
    glyph, look = _GLYPHS.get(item["kind"], _OTHER_GLYPH)
    return {**item, "glyph": glyph, "look": look}


def verdicts(history: History, event: Event) -> list[dict[str, Any]]:
    """What became known of a state change after it was made, oldest first."""
    later = EventFilter(kinds=[OBSERVED], min_seq=event.seq)
    observed = history.events(later, limit=_LOOKED_AT, newest_first=False)
    return items(history, [one for one in observed if one.body["of"] == event.seq])


def names(history: History, events: Sequence[Item]) -> dict[int, list[Item]]:
    """The versions that name the states of these events."""
    of: dict[int, list[Item]] = {}
    for version in history.naming(sorted({event["node"] for event in events})):
        of.setdefault(version.seq, []).append(version_item(version))
    return of


def grouped(events: Sequence[Item], named: Names, *, flat: bool = False) -> list[Run]:
    """Events with runs of updates folded; a state that has a name stands by itself."""
    return [Run((one,), False) for one in events] if flat else list(runs(events, set(named)))


def feedback(learnt: Sequence[Item]) -> list[Item]:
    """What learning rules were told, oldest first, of events that come newest first."""
    told = [item for item in reversed(learnt) if item["facts"]["feedback"] is not None]
    shown = ("seq", "kind", "recorded_at")
    return [
        {name: item[name] for name in shown} | {"feedback": item["facts"]["feedback"]}
        for item in told
    ]


@dataclass(frozen=True, slots=True)
class Fleet:
    """Who follows the log: how many replicas are ready, how many stand otherwise by their state,
    and the fenced ones, which do not vouch for what they show. None that was stopped counts."""

    ready: int
    others: Mapping[str, int]
    fenced: Sequence[Item]


def replicas(history: History) -> Fleet:
    """How the replicas of a log stand."""
    heard = [replica_item(one) for one in fleet(history) if one.state != "stopped"]
    states = Counter(one["state"] for one in heard)
    fenced = [one for one in heard if one["state"] == "fenced"]
    others = {state: n for state, n in sorted(states.items()) if state not in ("ready", "fenced")}
    return Fleet(states["ready"], others, fenced)


def versions(history: History, limit: int, below: int | None) -> tuple[list[Item], int | None]:
    """The last listed versions, or those before one with a number, newest first; and the number
    that the next page comes before."""
    listed = history.last_versions(limit + 1, below)
    page: list[Item] = [version_item(version) for version in listed[:limit]]
    if len(listed) <= limit:
        return page, None
    return page, history.event(page[-1]["version_id"]).number


def trials(manager: DynamicModelManager) -> list[dict[str, Any]]:
    """The trial that runs and the last that ended, newest first."""
    return [trial_item(trial) for trial in manager.trials()]


def approvals(log: Log) -> list[dict[str, Any]]:
    """Writes that wait for a second person, or did, newest first."""
    return [approval_item(approval) for approval in log.approvals(limit=MOST_APPROVALS)]


def keys(manager: DynamicModelManager) -> list[dict[str, Any]]:
    """The ledger's API keys without their secrets, those that are in use first."""
    now = time.time_ns() // 1000
    listed = [key_item(key, now) for key in manager.ledger.keys.all()]
    return sorted(listed, key=lambda key: (key["state"] != "active", key["name"]))


@dataclass(frozen=True, slots=True)
class Vouched:
    """How far the log is vouched for: events that were verified and when (an ISO time), events in
    the last signed checkpoint and in the last that witnesses have cosigned; None where nobody
    does, and what is wrong."""

    verified: int | None
    verified_at: float | None
    signed: int | None
    witnessed: int | None
    quorum: int
    problems: Sequence[str]


def vouched(manager: DynamicModelManager, notary: Notary) -> Vouched:
    """What `weightledger verify`, checkpoints and witnesses say of the log."""
    mark = marks.read(Path(manager.config.backup_dir), manager.log.history.store)
    standing = notary.standing
    return Vouched(
        verified=None if mark is None else mark.events,
        verified_at=None if mark is None else mark.verified_at,
        signed=standing.signed if notary.started else None,
        witnessed=standing.witnessed if notary.quorum else None,
        quorum=notary.quorum,
        problems=(*standing.contradictions, *standing.problems),
    )


def tree(log: Log, links: TreeLinks) -> str:
    """The last states, drawn."""
    history, live = log.history, log.live.head
    last = history.head().seq
    first = max(0, last + 1 - _TREE_EVENTS)
    changes = history.store.state_changes(first, last + 1)
    if live.node < first:  # a rollback far back
        changes = [*history.store.state_changes(live.node, live.node + 1), *changes]
    named: dict[int, list[str]] = {}
    for one in history.store.listed_at([change.seq for change in changes]):
        named.setdefault(one.node, []).append(f"v{one.number}")
    return tree_picture(changes, named, live.node, links, _TREE_STATES)


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
    shown = list(history.require_all(seqs[:_MOST_LEFT_BEHIND]))
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
