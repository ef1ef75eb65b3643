"""Small events as statements that write all of them: rows, annotations, touches, names on the list.

Touches are read as they were before the statement. That is what they are: whoever made these events
knew the one before, and nobody comes between.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from weightledger.ledger.events import VERSIONS, Event
from weightledger.ledger.events.bodies import VersionCreated, body_of
from weightledger.ledger.sql.backend import Backend
from weightledger.ledger.sql.turns import Statement
from weightledger.ledger.store import rows, touches
from weightledger.ledger.store.attached import Append

# Updates that one statement writes: each number of them is a statement of its own.
_MOST = 16

_ANNOTATION = "CAST(? AS text), CAST(? AS text), CAST(? AS text), CAST(? AS text), CAST(? AS bytea)"
_ANNOTATE = "INSERT INTO annotations (event_key, kind, actor, reason, metadata, salt)"
_TOUCH = "CAST(? AS bigint), CAST(? AS bigint), CAST(? AS bigint), CAST(? AS text)"
_IS_THERE = (
    "EXISTS (SELECT 1 FROM events"
    " WHERE event_key = CAST(? AS bigint) AND event_hash = CAST(? AS bytea))"
)

_LIST = (
    "INSERT INTO listed_versions (model_id, number, event_key, node, pinned)"
    " SELECT CAST(? AS bigint), CAST(? AS bigint), e.event_key, CAST(? AS bigint), 0 FROM e"
)

Small = tuple[Append, Sequence[int]]
"""An event, and of an update the ids of its parameters."""


def parts(items: Sequence[Small]) -> Iterator[Sequence[Small]]:
    """The items in order, as many together as one statement writes: one, or some updates that are
    of one parameter each."""
    part: list[Small] = []
    for item in items:
        if part and (len(part) == _MOST or len(item[1]) != 1 or len(part[-1][1]) != 1):
            yield part
            part = []
        part.append(item)
    yield part


def statement(
    backend: Backend,
    model_id: int,
    part: Sequence[Small],
    condition: str | None,
    after: Event | None,
) -> Statement:
    """What writes them if a condition holds, or the event `after` is there, and the values.

    It gives one row: whether that was so, and how many events were written.
    """
    values: list[Any] = []
    if after is not None:
        condition = _IS_THERE
        values += (rows.key_of(model_id, after.seq), after.hash)
    if len(part) == 1:
        sql, its = _of_one(backend, model_id, part[0], condition)
        return sql, (*values, *its)
    noted: list[Any] = []
    touched: list[Any] = []
    counts: Counter[int] = Counter()
    notes = 0
    for (event, note, attached), (parameter,) in part:
        row = rows.to_row(model_id, event)
        key = row[0]
        values += [*row, attached.inline]
        if note:
            notes += 1
            noted += (key, event.kind, note.actor, note.reason, note.metadata, note.salt)
        counts[parameter] += 1
        touched += (parameter, key, counts[parameter], note.actor)
    return _several(len(part), notes, condition), (*values, *noted, *touched)


def _of_one(backend: Backend, model_id: int, item: Small, condition: str | None) -> Statement:
    (event, note, attached), ids = item
    values = [*rows.to_row(model_id, event), attached.inline]
    if note:
        values += (event.kind, note.actor, note.reason, note.metadata, note.salt)
    rows_of = None
    if ids:
        rows_of, its = touches.source(backend, ids)
        values += (note.actor, its)
    named = event.series == VERSIONS
    if named:
        values += (model_id, event.number, body_of(event, VersionCreated).names.node)
    return _one(rows_of, condition, noted=bool(note), named=named), values


@cache
def _one(ids: str | None, condition: str | None, *, noted: bool, named: bool = False) -> str:
    parts = [f"e AS ({rows.INSERT_IF} FROM l WHERE l.ours RETURNING event_key)"]
    if noted:
        parts.append(f"a AS ({_ANNOTATE} SELECT e.event_key, {_ANNOTATION} FROM e)")
    if ids is not None:
        parts.append(f"t AS ({touches.counting(f'e, {ids}', 'e.event_key')})")
    if named:
        parts.append(f"v AS ({_LIST})")
    return _with(condition, parts)


@cache
def _several(count: int, notes: int, condition: str | None) -> str:
    parts = [
        f"e AS ({rows.INSERT_ROWS} SELECT v.* FROM (VALUES {_rows(rows.TYPED, count)}) AS v, l"
        " WHERE l.ours RETURNING event_key)"
    ]
    if notes:
        parts.append(
            f"a AS ({_ANNOTATE} SELECT n.* FROM"
            f" (VALUES {_rows(f'CAST(? AS bigint), {_ANNOTATION}', notes)}) AS n(event_key),"
            " e WHERE n.event_key = e.event_key)"
        )
    parts.append(
        "t AS (INSERT INTO touches (parameter_id, event_key, number, actor)"
        " SELECT v.parameter_id, v.event_key, v.number + coalesce((SELECT t.number FROM touches t"
        " WHERE t.parameter_id = v.parameter_id ORDER BY t.event_key DESC LIMIT 1), 0), v.actor"
        f" FROM (VALUES {_rows(_TOUCH, count)}) AS v(parameter_id, event_key, number, actor), e"
        " WHERE v.event_key = e.event_key)"
    )
    return _with(condition, parts)


def _with(condition: str | None, parts: Sequence[str]) -> str:
    ours = f"l AS MATERIALIZED (SELECT {condition or 'true'} AS ours)"
    return f"WITH {ours}, {', '.join(parts)} SELECT l.ours, (SELECT count(*) FROM e) FROM l"


def _rows(row: str, count: int) -> str:
    return ", ".join([f"({row})"] * count)
