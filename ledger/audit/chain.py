"""The chain: of every event its row, hash, place, running totals and annotation, not its payload.

Nearly all events are checked a page at a time, by its columns (`ledger.audit.pages`). What that
does not pass is decoded and checked field by field, which finds the words for what is wrong. What
an update's body says, and how it is written, is checked where its state is rebuilt.

Where the hashes of 256 events stand together they are a tile of the hash tree, whose root is given
to who checks the tree: see `ledger.audit.tree`.
"""

from collections.abc import Callable, Sequence

from weightledger.ledger import events
from weightledger.ledger.audit.pages import UNREADABLE, ChainPage, ChainPosition
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import (
    STATE_CHANGING,
    UPDATED,
    UPDATES,
    Annotation,
    Counts,
    Event,
    merkle,
)
from weightledger.ledger.events.canonical import is_canonical
from weightledger.ledger.history.redactions import Redactions
from weightledger.ledger.store import TILE, EventStore, RawEvent
from weightledger.ledger.store.facts import Facts, event_of

Progress = Callable[[int, int], None]
Redacted = Callable[[int, str], bool]

_HASH = Facts._fields.index("event_hash")


def check(
    store: EventStore, start: int, stop: int, progress: Progress | None = None
) -> list[bytes]:
    """Check the events start <= seq < stop; CorruptLedger names the first that does not hold.

    The event before `start` is taken as it is: whoever checks the events before vouches for it.
    Gives the roots of the tiles of the hash tree that lie within these events.
    """
    place = ChainPosition()
    if start > 0:
        before = store.event(start - 1)
        if before is None:
            raise CorruptLedger(f"event {start - 1} is missing", seq=start - 1)
        place = ChainPosition.after(before)
    redacted = Redactions(store)
    tiles: list[bytes] = []
    hashes: list[bytes] = []
    before_first_tile = -start % TILE
    for page in store.raw(start, stop):
        place = check_page(page, store.model, place, redacted)
        hashes += [row[_HASH] for row in page]
        del hashes[:before_first_tile]
        before_first_tile = 0
        whole = len(hashes) // TILE * TILE
        tiles += [merkle.fold(hashes[at : at + TILE]) for at in range(0, whole, TILE)]
        del hashes[:whole]
        if progress is not None:
            progress(place.seq + 1, stop)
    if place.seq + 1 != stop:
        raise CorruptLedger(f"event {place.seq + 1} is missing", seq=place.seq + 1)
    return tiles


def check_page(
    rows: Sequence[RawEvent],
    model: str,
    place: ChainPosition,
    redacted: Redacted = lambda seq, text: False,
) -> ChainPosition:
    """Check that events and what stands beside them follow `place`; gives where they lead to.

    `redacted` says whether a text that is missing was taken away as an event of the log says.
    """
    try:
        page = ChainPage(rows, place)
        sound = page.sound(model)
    except UNREADABLE:
        for row in rows:
            place = _check_event(row, model, place, redacted)
        return place
    for at, row in enumerate(rows):
        if not sound[at]:
            _check_event(row, model, page.place(at), redacted)
    return page.place(len(rows))


def _check_event(
    row: RawEvent, model: str, place: ChainPosition, redacted: Redacted
) -> ChainPosition:
    """Check all that is said of an event, field by field."""
    facts, note = row[: len(Facts._fields)], row[len(Facts._fields) :]
    seq = facts[0]
    if seq != place.seq + 1:
        raise CorruptLedger(
            f"event {place.seq + 1} is missing, event {seq} follows", seq=place.seq + 1
        )
    event = event_of(facts, model)
    _check_place(event, model, place)
    _check_annotation(event, Annotation(*note), redacted)
    check_form(event)
    return ChainPosition.after(event)


def _check_place(event: Event, model: str, place: ChainPosition) -> None:
    """The event follows `place`, and its running values are what they must be."""
    expected: dict[str, object] = {
        "model": model,
        "prev": _bytes(place.hash),
        "state_before": _bytes(place.state),
        "counts": Counts(
            applied=place.counts.applied + (event.kind == UPDATED),
            updates=place.counts.updates + (event.series == UPDATES),
            versions=place.counts.versions + (event.series == events.VERSIONS),
        ),
    }
    if event.kind not in STATE_CHANGING:
        expected |= {"node": place.node, "parent": None, "state_seq": place.state_seq}
        expected |= {"state_after": _bytes(place.state)}
    else:
        expected |= {"parent": place.node, "state_seq": event.seq}
        if event.kind != events.ROLLED_BACK:
            expected["node"] = event.seq
    if event.series == UPDATES:
        expected["number"] = place.counts.updates + 1
    if event.series == events.VERSIONS:
        expected["number"] = place.counts.versions
    for field, value in expected.items():
        if getattr(event, field) != value:
            raise CorruptLedger(
                f"event {event.seq}: {field} is {_shown(getattr(event, field))},"
                f" expected {_shown(value)}",
                seq=event.seq,
            )
    if event.recorded_at < place.recorded_at:
        raise CorruptLedger(
            f"event {event.seq} was recorded before event {place.seq}", seq=event.seq
        )


def _check_annotation(event: Event, note: Annotation, redacted: Redacted) -> None:
    for field in ("actor", "reason", "metadata"):
        recorded, there = getattr(event, f"{field}_digest"), note.digest(field)
        if recorded is not None and there is None and redacted(event.seq, field):
            continue
        if recorded != there:
            raise CorruptLedger(
                f"event {event.seq}: its {field} is not the one recorded", seq=event.seq
            )


def check_form(event: Event) -> None:
    """The header is canonical: a reader of another make cannot take it for something else."""
    if not is_canonical(event.header):
        raise CorruptLedger(f"event {event.seq}: its header is not canonical JSON", seq=event.seq)


def _bytes(hexadecimal: str | None) -> bytes | None:
    return None if hexadecimal is None else bytes.fromhex(hexadecimal)


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)
