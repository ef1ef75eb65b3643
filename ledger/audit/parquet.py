"""A log as Parquet, for analysis at scale; the header's bytes and hashes are in it, to be checked.

A row an event. `pyarrow` comes with the extra `parquet` and is imported where a file is written.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weightledger.ledger.audit.signing import origin
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import Annotation, Event
from weightledger.ledger.store import EventStore

_PAGE = 10_000


def write(store: EventStore, file: Path) -> None:
    """Write the log as it is now; InvalidRequest where pyarrow is not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InvalidRequest(
            "Parquet needs pyarrow: pip install 'weightledger[parquet]'", param="form"
        ) from None
    schema = pyarrow.schema(
        [
            pyarrow.field("seq", pyarrow.int64(), nullable=False),
            pyarrow.field("id", pyarrow.string(), nullable=False),
            pyarrow.field("kind", pyarrow.string(), nullable=False),
            pyarrow.field("recorded_at", pyarrow.timestamp("us", tz="UTC"), nullable=False),
            pyarrow.field("actor", pyarrow.string()),
            pyarrow.field("reason", pyarrow.string()),
            pyarrow.field("metadata", pyarrow.string()),
            pyarrow.field("salt", pyarrow.binary()),
            pyarrow.field("request_id", pyarrow.string()),
            pyarrow.field("state_seq", pyarrow.int64(), nullable=False),
            pyarrow.field("node", pyarrow.int64(), nullable=False),
            pyarrow.field("state_before", pyarrow.binary()),
            pyarrow.field("state_after", pyarrow.binary(), nullable=False),
            pyarrow.field("payload_bytes", pyarrow.int64(), nullable=False),
            pyarrow.field("header", pyarrow.binary(), nullable=False),
            pyarrow.field("event_hash", pyarrow.binary(), nullable=False),
        ],
        metadata={"weightledger.model": store.model, "weightledger.origin": origin(store)},
    )
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for rows in _pages(store):
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _pages(store: EventStore) -> Iterator[list[dict[str, Any]]]:
    size = store.head().seq + 1
    for start in range(0, size, _PAGE):
        page = list(store.scan(start, min(start + _PAGE, size)))
        notes = store.annotations([event.seq for event in page])
        yield [_row(event, notes.get(event.seq)) for event in page]


def _row(event: Event, note: Annotation | None) -> dict[str, Any]:
    return {
        "seq": event.seq,
        "id": event.name,
        "kind": event.kind,
        "recorded_at": event.recorded_at,
        "actor": note.actor if note else None,
        "reason": note.reason if note else None,
        "metadata": note.metadata if note else None,
        "salt": note.salt if note else None,
        "request_id": event.request_id,
        "state_seq": event.state_seq,
        "node": event.node,
        "state_before": event.state_before,
        "state_after": event.state_after,
        "payload_bytes": event.payload_size,
        "header": event.header,
        "event_hash": event.hash,
    }
