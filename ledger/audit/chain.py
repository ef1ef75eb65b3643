"""The chain: of every event its row, hash, place, running totals and annotation, not its payload.

Updates, nearly all events, are checked by comparing bytes: a header is canonical, so apart from its
body it can be written down from the event before it and the columns beside it. Other events, and
headers that differ from that, are decoded and checked field by field, which also finds the words
for what is wrong. What an update's body says is checked where its state is rebuilt.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from weightledger.ledger import events
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import (
    LEAF_PREFIX,
    STATE_CHANGING,
    UPDATED,
    UPDATES,
    Annotation,
    Counts,
    Event,
    annotation_digest,
)
from weightledger.ledger.events.changes import FACTORS
from weightledger.ledger.store import EventStore, Note, RawEvent
from weightledger.ledger.store.facts import event_of

Progress = Callable[[int, int], None]

_FACTORS = f'"form":"{FACTORS[:-2]}'.encode()  # of any revision; a search for this end is quick
_HEX = b"0123456789abcdef"
_PIECE = '{"digest":"', '","size":%d}', 64  # of a payload, and the length of the digest between
_NOTHING = "", "", 0
_DIGEST = b',"request_digest":"'
_ASKED = len(_DIGEST) + 64 + 1
_REQUEST = re.compile(rb'(?:,"request_digest":"[0-9a-f]{64}")?(?:,"request_id":"[^"\\]*")?')


@dataclass(slots=True)
class Place:
    """Where the log stands after an event: what the next one has to continue. Digests are hex."""

    seq: int = -1
    hash: str | None = None
    state: str | None = None
    recorded_at: int = 0
    node: int | None = None
    state_seq: int | None = None
    applied: int = 0
    updates: int = 0
    versions: int = 0

    def move(self, event: Event) -> None:
        """Stand after an event."""
        self.seq, self.hash, self.state = event.seq, event.hash.hex(), event.state_after.hex()
        self.recorded_at, self.node, self.state_seq = event.recorded_at, event.node, event.state_seq
        counts = event.counts
        self.applied, self.updates, self.versions = counts.applied, counts.updates, counts.versions


def check(store: EventStore, start: int, stop: int, progress: Progress | None = None) -> None:
    """Check the events start <= seq < stop; CorruptLedger names the first that does not hold.

    The event before `start` is taken as it is: whoever checks the events before vouches for it.
    """
    place = Place()
    if start > 0:
        before = store.event(start - 1)
        if before is None:
            raise CorruptLedger(f"event {start - 1} is missing", seq=start - 1)
        place.move(before)
    for page, annotations in store.raw(start, stop):
        place = _check_page(page, annotations, store.model, place)
        if progress is not None:
            progress(place.seq + 1, stop)
    if place.seq + 1 != stop:
        raise CorruptLedger(f"event {place.seq + 1} is missing", seq=place.seq + 1)


def _check_page(page: list[RawEvent], notes: Mapping[int, Note], model: str, place: Place) -> Place:
    """Where the log stands after these rows."""
    left = iter(page)
    while (row := _pass_over(left, notes, model, place)) is not None:
        seq = row[0]
        if seq != place.seq + 1:
            raise CorruptLedger(
                f"event {place.seq + 1} is missing, event {seq} follows", seq=place.seq + 1
            )
        event = event_of(row, model)
        _check_place(event, model, place)
        note = notes.get(row[0])
        _check_annotation(event, None if note is None else Annotation(*note[1:]))
        place.move(event)
    return place


def _pass_over(
    left: Iterator[RawEvent], notes: Mapping[int, Note], model: str, place: Place
) -> Any:
    """Move `place` over the updates that are, byte for byte, what their rows and the event before
    say; gives the first row that is not, None when there is none left.

    That one goes to the checks of every field, so whatever is unusual may end it here. A header is
    looked at from its end, where all is known but two digests and who asked: `,"counts":` up to
    the payload's digest, from there up to `recorded_at`, what identifies the request, the rest.
    """
    named = f'"model":{json.dumps(model, ensure_ascii=False)},"node":'
    seq, parent, updates = place.seq, place.node, place.updates
    prev, before, recorded_before = place.hash, place.state, place.recorded_at
    apart = place.updates - place.applied  # updates that were refused
    versions = f',"versions":{place.versions}}},"format":1,"kind":"updated",'
    active, asked = b"{", _ASKED  # how the last header began; the length of what identified it
    onto = str(parent)
    unusual = None
    for row in left:
        # fmt: off
        (stored_seq, kind, recorded_at, node, stood_on, changes, forward_only, series, number,
         idempotency_key, state, size, header, event_hash) = row
        # fmt: on
        seq += 1
        updates += 1
        if (
            kind != UPDATED
            or stored_seq != seq
            or node != seq
            or stood_on != parent
            or changes != 1
            or forward_only != 0
            or series != UPDATES
            or number != updates
            or idempotency_key is not None
            or recorded_at < recorded_before
            or type(header) is not bytes
            or sha256(LEAF_PREFIX + header).digest() != event_hash
            or _FACTORS in header
        ):
            unusual = row
            break
        actor = metadata = reason = ""
        if (note := notes.get(seq)) is not None:
            _, said_by, why, beside, salt = note
            if said_by is not None:
                actor = f'"actor":"{annotation_digest(salt, "actor", said_by)}",'
            if why is not None:
                reason = f',"reason":"{annotation_digest(salt, "reason", why)}"'
            if beside is not None:
                metadata = f'"metadata":"{annotation_digest(salt, "metadata", beside)}",'
        own, after = str(seq), state.hex()
        piece, of_size, digest = _PIECE if size else _NOTHING
        middle = (
            f',"counts":{{"applied":{updates - apart},"updates":{updates}{versions}{metadata}'
            f'{named}{own},"number":{updates},"parent":{onto},"payload":[{piece}'
        ).encode()
        link = (
            f'{of_size % size if size else ""}],"prev":"{prev}"{reason},"recorded_at":{recorded_at}'
        ).encode()
        tail = (
            f',"seq":{own},"series":"updates","state_after":"{after}","state_before":"{before}",'
            f'"state_seq":{own}}}'
        ).encode()
        request = len(header) - len(tail) - asked
        counts = request - len(link) - digest - len(middle)
        if not header.startswith(middle, counts):
            # Strings escape their quotes, and no list or object stands behind the counts and the
            # payload, so what is found last is the header's own.
            counts = header.rfind(b',"counts":')
            request = counts + len(middle) + digest + len(link)
            asked = len(header) - len(tail) - request
        began = f'{actor}"body":{{'.encode()
        if not (header.startswith(active) and header.startswith(began, len(active))):
            active = header[: _behind_active(header)]
        pieces = counts + len(middle)
        if not (
            header.startswith(middle, counts)
            and header.startswith(link, pieces + digest)
            and header.endswith(tail)
            and not header[pieces : pieces + digest].translate(None, _HEX)
            and asked >= 0
            and _identifies(header[request : request + asked])
            and header.startswith(began, len(active))
        ):
            unusual = row
            break
        prev, before, recorded_before = event_hash.hex(), after, recorded_at
        parent, onto = seq, own
    if parent != place.node:
        left_over = unusual is not None
        place.seq, place.node, place.state_seq = seq - left_over, parent, parent
        place.hash, place.state, place.recorded_at = prev, before, recorded_before
        place.updates, place.applied = updates - left_over, updates - left_over - apart
    return unusual


def _identifies(request: bytes) -> bool:
    """Whether these are the fields of a header that identify a request, or nothing."""
    if len(request) == _ASKED and request.startswith(_DIGEST) and request.endswith(b'"'):
        return not request[len(_DIGEST) : -1].translate(None, _HEX)
    return not request or _REQUEST.fullmatch(request) is not None


def _behind_active(header: bytes) -> int:
    """Where the field behind "active" begins, which is first where it is there at all."""
    return header.find(b",") + 1 if header.startswith(b'{"active":') else 1


def _check_place(event: Event, model: str, place: Place) -> None:
    """The event follows `place`, and its running values are what they must be."""
    expected: dict[str, object] = {
        "model": model,
        "prev": _bytes(place.hash),
        "state_before": _bytes(place.state),
        "counts": Counts(
            place.updates + (event.series == UPDATES),
            place.applied + (event.kind == UPDATED),
            place.versions + (event.series == events.VERSIONS),
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
        expected["number"] = place.updates + 1
    if event.series == events.VERSIONS:
        expected["number"] = place.versions
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


def _check_annotation(event: Event, note: Annotation | None) -> None:
    for field in ("actor", "reason", "metadata"):
        recorded = getattr(event, f"{field}_digest")
        if recorded != (note.digest(field) if note else None):
            raise CorruptLedger(
                f"event {event.seq}: its {field} is not the one recorded", seq=event.seq
            )


def _bytes(hexadecimal: str | None) -> bytes | None:
    return None if hexadecimal is None else bytes.fromhex(hexadecimal)


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)
