"""Positions: how people name a state.

A version id (`v3_1763856000`), an update id (`update_17_1763856000`), either without its time
(`v3`, `update_17`), a seq (`12`, `seq:12`, `event_12`: the state after event 12), `head`, `head~N`
(the state before the last N state changes, rollbacks counted), the first hex digits of a state's
digest (4 or more, one of them a letter), or a UTC time (`2026-11-22T10:00:00Z`: the last state
recorded by then).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from weightledger.ledger.errors import Ambiguous, CorruptLedger, NotFound
from weightledger.ledger.events import UPDATES, VERSIONS, Event
from weightledger.ledger.events.bodies import VersionCreated, body_of
from weightledger.ledger.store import EventStore

_NUMBERED = re.compile(r"(update_|v)([0-9]{1,15})(?:_([0-9]{1,15}))?")
_SEQ = re.compile(r"(?:seq:|event_)?([0-9]{1,15})")
_HEAD = re.compile(r"head(?:~([0-9]{1,15}))?")
_DIGEST = re.compile(r"[0-9a-f]{4,64}")
_DIGEST_DIGITS = 64
_MOST_LISTED = 8  # states that a digest's start may mean, in an error

FORMS = (
    "v3, update_17, a seq such as 12, head, head~2, the first 4 or more hex digits of a digest, "
    "or a UTC time"
)


@dataclass(frozen=True, slots=True)
class Position:
    """A named state: the event that was named and the node the name stands for.

    `text` is the name in its whole form.
    """

    text: str
    event: Event
    node: int
    state: bytes

    @property
    def is_version(self) -> bool:
        """Whether a version was named; then the state is the one the version names."""
        return self.text == self.event.name and self.event.series == VERSIONS


def resolve(store: EventStore, text: str) -> Position:
    """The position that `text` names; NotFound when there is none, or more than one."""
    event, whole = _find(store, text)
    here = Position(whole, event, event.node, event.state_after)
    if here.is_version:
        named = body_of(event, VersionCreated).names
        return Position(whole, event, named.node, named.state)
    return here


def find_event(store: EventStore, name: str) -> Event:
    """The event that a position names; NotFound when there is none, or more than one."""
    return _find(store, name)[0]


def _find(store: EventStore, text: str) -> tuple[Event, str]:
    """The event, and its name in its whole form."""
    if not isinstance(text, str):
        raise NotFound(f"Position {text!r} not found; expected {FORMS}")
    if match := _NUMBERED.fullmatch(text):
        series, number = UPDATES if match[1] == "update_" else VERSIONS, int(match[2])
        event = _kept(
            lambda: store.by_number(series, number),
            lambda: number in _numbers(store.head(), series),
            CorruptLedger(f"the event of {match[0]} is missing from the log"),
        )
        if event is None or (match[3] is not None and event.name != text):
            raise NotFound(f"{'Update' if series == UPDATES else 'Version'} {text} not found")
        return event, event.name
    whole = text
    if match := _SEQ.fullmatch(text):
        seq = int(match[1])
        event = _kept(
            lambda: store.event(seq),
            lambda: seq < store.head().seq,
            CorruptLedger(f"event {seq} is missing from the log", seq=seq),
        )
        whole = f"seq:{seq}"
    elif match := _HEAD.fullmatch(text):
        head = store.head()
        back = int(match[1] or 0)
        event = store.state_change_before(head.seq, back) if back else head
    elif _DIGEST.fullmatch(text.lower()):
        event = _by_digest(store, text.lower())
        whole = f"seq:{event.seq}"
    elif (moment := parse_time(text)) is not None:
        event = store.at_time(moment)
    else:
        raise NotFound(f"Position {text!r} not found; expected {FORMS}")
    if event is None:
        raise NotFound(f"Position {text!r} not found: the log does not reach there")
    return event, whole


def _kept(
    look: Callable[[], Event | None], is_there: Callable[[], bool], missing: CorruptLedger
) -> Event | None:
    """What is found; raises `missing` where the log says that it is there and it is not.

    It may have been appended between the two, so it is looked for once more.
    """
    event = look()
    if event is None and is_there():
        event = look()
        if event is None:
            raise missing
    return event


def _numbers(head: Event, series: str) -> range:
    """The numbers that were given up to an event: updates count from 1, versions from 0."""
    counts = head.counts
    return range(1, counts.updates + 1) if series == UPDATES else range(counts.versions)


def _by_digest(store: EventStore, start: str) -> Event:
    """The last event that led to the one state whose digest starts so."""
    missing = _DIGEST_DIGITS - len(start)
    first, last = (bytes.fromhex(start + digit * missing) for digit in "0f")
    states = store.states_between(first, last, _MOST_LISTED + 1)
    if not states:
        raise NotFound(f"no state's digest starts with {start}; expected {FORMS}")
    if len(states) > 1:
        listed = ", ".join(
            f"{event.state_after.hex()[: len(start) + 4]}… ({event.name})"
            for event in states[:_MOST_LISTED]
        )
        more = " and more" if len(states) > _MOST_LISTED else ""
        raise Ambiguous(f"digests of several states start with {start}: {listed}{more}")
    return states[0]


def parse_time(text: str) -> int | None:
    """UTC microseconds of an ISO 8601 time; a time without an offset is UTC. None if it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    elapsed = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds


def iso_time(recorded_at: int) -> str:
    """UTC microseconds since the epoch as ISO 8601 with a Z."""
    seconds, micros = divmod(recorded_at, 1_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
