"""Legal holds: versions that have to be kept, whatever else is decided about them.

A hold names a version and says why. While it stands the version is not retired and gc keeps its
state, pinned or not; a version may be under several holds, of several cases, and is free when each
of them has been released. A version that was retired before can be held too, as long as its state
is still there. Placing and releasing are events, and the log alone tells which holds stand.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from weightledger.ledger.errors import NotFound
from weightledger.ledger.events import HOLDS, RELEASES, Event
from weightledger.ledger.events.bodies import HoldPlaced, body_of
from weightledger.ledger.store import EventStore


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold: the event that placed it and the one that released it, with who and why."""

    placed: Event
    placed_by: str | None
    reason: str | None
    release: Event | None = None
    released_by: str | None = None
    release_reason: str | None = None

    @property
    def id(self) -> str:
        """Its name: `hold_{n}`."""
        return f"hold_{self.number}"

    @property
    def number(self) -> int:
        assert self.placed.number is not None
        return self.placed.number

    @property
    def what(self) -> HoldPlaced:
        """The version that is held."""
        return body_of(self.placed, HoldPlaced)

    @property
    def stands(self) -> bool:
        """Whether it has not been released."""
        return self.release is None


def every(store: EventStore) -> list[Hold]:
    """All holds that were ever placed, newest first."""
    return [_of(store, placed) for placed in _placed(store)][::-1]


def find(store: EventStore, name: str) -> Hold:
    """A hold by its id; NotFound otherwise."""
    prefix, _, digits = name.rpartition("_")
    known = digits.isascii() and digits.isdigit() and len(digits) < 16 and prefix == "hold"
    placed = store.by_number(HOLDS, int(digits)) if known else None
    if placed is None:
        raise NotFound(f"there is no hold {name!r}", param="hold_id")
    return _of(store, placed)


def held_states(store: EventStore) -> dict[int, int]:
    """The numbers of the versions that are held now, with the nodes of their states."""
    standing = (
        body_of(placed, HoldPlaced)
        for placed in _placed(store)
        if placed.number is not None and store.by_number(RELEASES, placed.number) is None
    )
    return {held.number: held.node for held in standing}


def next_number(store: EventStore) -> int:
    """The number of the next hold."""
    last = store.last_number(HOLDS)
    return 0 if last is None else last + 1


def _placed(store: EventStore) -> Iterator[Event]:
    """The events that placed holds, oldest first."""
    for number in range(next_number(store)):
        placed = store.by_number(HOLDS, number)
        if placed is not None:
            yield placed


def _of(store: EventStore, placed: Event) -> Hold:
    assert placed.number is not None
    note, release = store.annotation(placed.seq), store.by_number(RELEASES, placed.number)
    by = store.annotation(release.seq) if release else None
    return Hold(
        placed,
        note.actor if note else None,
        note.reason if note else None,
        release,
        by.actor if by else None,
        by.reason if by else None,
    )
