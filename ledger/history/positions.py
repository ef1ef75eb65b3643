"""Positions: how people name a state.

A version id (`v3_1763856000`), an update id (`update_17_1763856000`), `seq:N` (the state after
event N), `head`, `head~N` (the state before the last N state changes, rollbacks counted), or a
UTC time (`2026-11-22T10:00:00Z`: the last state recorded by then).
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from weightledger.ledger.errors import NotFound
from weightledger.ledger.events import UPDATES, VERSIONS, Event
from weightledger.ledger.events.bodies import VersionCreated, body_of
from weightledger.ledger.store import EventStore

_NUMBERED = re.compile(r"(update_|v)([0-9]{1,15})_([0-9]{1,15})")
_SEQ = re.compile(r"seq:([0-9]{1,15})")
_HEAD = re.compile(r"head(?:~([0-9]{1,15}))?")

FORMS = "a version id, an update id, seq:N, head, head~N or a UTC time"


@dataclass(frozen=True, slots=True)
class Position:
    """A named state: the event that was named and the node the name stands for."""

    text: str
    event: Event
    node: int
    state: bytes

    @property
    def is_version(self) -> bool:
        """Whether a version was named; then the state is the one the version names."""
        return self.text == self.event.name and self.event.series == VERSIONS


def resolve(store: EventStore, text: str) -> Position:
    """The position that `text` names; NotFound when there is none."""
    event = _find(store, text)
    here = Position(text, event, event.node, event.state_after)
    if here.is_version:
        named = body_of(event, VersionCreated).names
        return Position(text, event, named.node, named.state)
    return here


def find_event(store: EventStore, name: str) -> Event:
    """The event with this public name: an update id, a version id, or `event_{seq}`."""
    if name.startswith("event_"):
        name = "seq:" + name.removeprefix("event_")
    if not (_NUMBERED.fullmatch(name) or _SEQ.fullmatch(name)):
        raise NotFound(f"Event {name!r} not found; expected an update id, a version id or seq:N")
    return _find(store, name)


def _find(store: EventStore, text: str) -> Event:
    if not isinstance(text, str):
        raise NotFound(f"Position {text!r} not found; expected {FORMS}")
    event: Event | None = None
    if match := _NUMBERED.fullmatch(text):
        series = UPDATES if match[1] == "update_" else VERSIONS
        event = store.by_number(series, int(match[2]))
        what = "Update" if series == UPDATES else "Version"
        if event is None or event.name != text:
            raise NotFound(f"{what} {text} not found")
        return event
    if match := _SEQ.fullmatch(text):
        event = store.event(int(match[1]))
    elif match := _HEAD.fullmatch(text):
        head = store.head()
        back = int(match[1] or 0)
        event = store.state_change_before(head.seq, back) if back else head
    elif (moment := _time(text)) is not None:
        event = store.at_time(moment)
    else:
        raise NotFound(f"Position {text!r} not found; expected {FORMS}")
    if event is None:
        raise NotFound(f"Position {text!r} not found: the log does not reach there")
    return event


def parse_time(text: str) -> int | None:
    """UTC microseconds of an ISO 8601 time; a time without an offset is UTC. None if it is none."""
    return _time(text)


def _time(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    elapsed = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds
