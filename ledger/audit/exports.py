"""A log as lines of JSON, to be read and checked without the database.

    {"format":"weightledger.log.1","model":…,"origin":…,"events":N}
    {"header":…,"actor":…,"reason":…,"metadata":…,"salt":…}

A line an event: the header as the text whose bytes are hashed, and the texts beside it, which the
header holds salted digests of. Payloads are not in it.
"""

import json
from collections.abc import Iterator
from typing import Any

from weightledger.ledger.audit.signing import origin
from weightledger.ledger.store import EventStore

FORMAT = "weightledger.log.1"

_PAGE = 1000


def lines(store: EventStore) -> Iterator[str]:
    """The log as it is now, a line at a time, each with its newline."""
    size = store.head().seq + 1
    yield _line({"format": FORMAT, "model": store.model, "origin": origin(store), "events": size})
    for start in range(0, size, _PAGE):
        page = list(store.scan(start, min(start + _PAGE, size)))
        notes = store.annotations([event.seq for event in page])
        for event in page:
            item: dict[str, Any] = {"header": event.header.decode()}
            note = notes.get(event.seq)
            if note is not None:
                texts = {"actor": note.actor, "reason": note.reason, "metadata": note.metadata}
                item |= {name: text for name, text in texts.items() if text is not None}
                item["salt"] = note.salt.hex()
            yield _line(item)


def _line(item: dict[str, Any]) -> str:
    return json.dumps(item, ensure_ascii=False, separators=(",", ":")) + "\n"
