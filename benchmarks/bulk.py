"""Rows into the tables of an empty ledger, a million of them in a minute."""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import psycopg

from weightledger.ledger.sql.database import Database
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.store import TILE, rows, tree_rows

EVENTS = f"events ({', '.join(rows.COLUMNS)})"
EVENTS_WITH_PAYLOAD = f"events ({', '.join(rows.COLUMNS)}, payload)"
TOUCHES = "touches (parameter_id, event_key, number, actor)"
ANNOTATIONS = "annotations (event_key, kind, actor, reason, metadata, salt)"
PARAMETERS = "parameters (model_id, name)"
MODELS = "models (name)"
SNAPSHOTS = "snapshots (model_id, node, manifest, size)"

LISTED = "listed_versions (model_id, number, event_key, node, pinned)"

_PAGE = 20_000  # events

Parts = Sequence[tuple[str, tuple[Any, ...]]]
"""The rows of one event: the table with its columns, and the values."""


def pages(events: Iterable[Parts]) -> Iterator[Mapping[str, list[tuple[Any, ...]]]]:
    """The rows of many events, by the table they go to."""
    rest = iter(events)
    while page := list(islice(rest, _PAGE)):
        made: dict[str, list[tuple[Any, ...]]] = {}
        for parts in page:
            for into, row in parts:
                made.setdefault(into, []).append(row)
        yield made


def write(url: str, events: Iterable[Parts]) -> None:
    """Insert the rows of events in order, all triggers at work, nothing synced before the end."""
    _insert(url, events)
    with closing(Database.connect(url)) as database, database.write() as execute:
        keys = execute("SELECT model_id, max(event_key) FROM events GROUP BY model_id").fetchall()
        for model_id, last in keys:
            for seq in range(TILE - 1, (last & SEQ_MASK) + 1, TILE):
                tree_rows.grow(execute, model_id, seq)


def _insert(url: str, events: Iterable[Parts]) -> None:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            for page in pages(events):
                for into, values in page.items():
                    marks = ", ".join("?" * len(values[0]))
                    connection.executemany(f"INSERT INTO {into} VALUES ({marks})", values)
                connection.commit()
            connection.execute("ANALYZE")
            connection.commit()
        return
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for page in pages(events):
            for into, values in page.items():
                with connection.cursor().copy(f"COPY {into} FROM STDIN") as copy:
                    for value in values:
                        copy.write_row(value)
        connection.execute("VACUUM ANALYZE")
