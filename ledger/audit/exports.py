"""A log as lines of JSON, to be read and checked without the database.

    {"format":"weightledger.log.1","model":…,"origin":…,"events":N}
    {"header":…,"actor":…,"reason":…,"metadata":…,"salt":…}

A line an event: the header as the text whose bytes are hashed, and the texts beside it, which the
header holds salted digests of. With payloads the first line has `"payloads":true`, and a line also
has, in base64, what restoring states needs: `payload`, the event's own bytes; `blobs` by hex
digest, each where it is first needed; and `snapshot`, where one is kept of the state. `transfer`
makes a log of such lines.
"""

import base64
import json
from collections.abc import Iterator
from typing import Any

from weightledger.ledger.audit.signing import origin
from weightledger.ledger.errors import Pruned
from weightledger.ledger.events import Annotation, Event
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.snapshots import read_manifest
from weightledger.ledger.store import EventStore

FORMAT = "weightledger.log.1"

_PAGE = 1000
_FEW = 50  # events held with their payloads, of up to 256 KiB


def lines(store: EventStore) -> Iterator[str]:
    """The log as it is now, a line at a time, each with its newline."""
    size = store.head().seq + 1
    yield _line(_opening(store, size))
    for event, note in _events(store, size, _PAGE):
        yield _line(_item(event, note))


def whole_lines(history: History) -> Iterator[str]:
    """The same with everything that restoring each state needs.

    Raises Pruned where gc has dropped some of it: `weightledger backup` copies what is left.
    """
    store = history.store
    size = store.head().seq + 1
    snapshots = {one.node: one for one in store.snapshots()}
    written: set[bytes] = set()
    yield _line({**_opening(store, size), "payloads": True})
    for event, note in _events(store, size, _FEW):
        if history.pruned(event.seq) or (event.seq == 0 and 0 not in snapshots):
            raise Pruned(
                f"gc has dropped what event {event.seq} needs, so not every state can be exported;"
                " `weightledger backup` copies what is left",
                seq=event.seq,
            )
        item = _item(event, note)
        needed = list(event.blobs)
        if event.payload and not needed_alone(event):
            item["payload"] = _text(store.stored_payload(event))
        snapshot = snapshots.get(event.seq)
        if snapshot is not None:
            item["snapshot"] = {"manifest": snapshot.manifest.hex(), "size": snapshot.size}
            manifest = history.blobs.get(snapshot.manifest)
            needed += [snapshot.manifest, *read_manifest(manifest).digests.values()]
        fresh = dict.fromkeys(one for one in needed if one not in written)
        written.update(fresh)
        if fresh:
            item["blobs"] = {one.hex(): _text(history.blobs.get(one)) for one in fresh}
        yield _line(item)


def needed_alone(event: Event) -> bool:
    """Whether an event's payload is in blobs, and not in its own row."""
    return any(ref.digest in event.blobs for ref in event.payload)


def _opening(store: EventStore, size: int) -> dict[str, Any]:
    return {"format": FORMAT, "model": store.model, "origin": origin(store), "events": size}


def _events(store: EventStore, size: int, most: int) -> Iterator[tuple[Event, Annotation | None]]:
    for start in range(0, size, most):
        page = list(store.scan(start, min(start + most, size)))
        notes = store.annotations([event.seq for event in page])
        for event in page:
            yield event, notes.get(event.seq)


def _item(event: Event, note: Annotation | None) -> dict[str, Any]:
    item: dict[str, Any] = {"header": event.header.decode()}
    if note is not None:
        texts = {"actor": note.actor, "reason": note.reason, "metadata": note.metadata}
        item |= {name: text for name, text in texts.items() if text is not None}
        item["salt"] = note.salt.hex()
    return item


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _line(item: dict[str, Any]) -> str:
    return json.dumps(item, ensure_ascii=False, separators=(",", ":")) + "\n"
