"""Finding events: times as ranges of seqs, filters as ranges of indexes.

Times never decrease along a log, so a time is found by bisection over the primary key. A filter is
answered from the narrowest index there is (parameters, else rare kinds, else actors): of each value
the first keys in order are read, then merged, and what else is asked for is checked on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ledger.events import UPDATED
from ledger.store import EventFilter, rows
from ledger.store.backend import Execute
from ledger.store.bulk import marks, pieces
from ledger.store.rows import key_of
from ledger.store.tables import SEQ_MASK

_WEIGHTS = "weights/"

# Values merged by one statement; SQLite refuses more than 500 terms.
_MERGED = 100


@dataclass(slots=True)
class _Source:
    """An index to read: a condition on the table `s` that each of `values` fills in."""

    table: str
    condition: str
    values: Sequence[Any]
    checks: list[str] = field(default_factory=list)
    check_values: list[Any] = field(default_factory=list)


def last_seq(execute: Execute, model_id: int) -> int | None:
    """The seq of a model's last event."""
    row = execute(
        "SELECT event_key FROM events WHERE event_key BETWEEN ? AND ?"
        " ORDER BY event_key DESC LIMIT 1",
        (key_of(model_id, 0), key_of(model_id, SEQ_MASK)),
    ).fetchone()
    return None if row is None else row[0] & SEQ_MASK


def seq_at(execute: Execute, model_id: int, moment: int) -> int:
    """The seq of the last event recorded at or before a time (UTC microseconds); -1 for none."""
    last = last_seq(execute, model_id)
    low, high = -1, -1 if last is None else last
    while low < high:
        middle = (low + high + 1) // 2
        (recorded_at,) = execute(
            "SELECT recorded_at FROM events WHERE event_key = ?", (key_of(model_id, middle),)
        ).fetchone()
        if recorded_at <= moment:
            low = middle
        else:
            high = middle - 1
    return low


def select(
    execute: Execute, model_id: int, where: EventFilter, limit: int, newest_first: bool
) -> list[Any]:
    """Rows of events that pass a filter, at most `limit`, by seq."""
    low = max(where.min_seq or 0, 0)
    high = SEQ_MASK if where.max_seq is None else where.max_seq
    if where.since is not None:
        low = max(low, seq_at(execute, model_id, where.since - 1) + 1)
    if where.until is not None:
        high = min(high, seq_at(execute, model_id, where.until))
    source = _source(execute, model_id, where)
    if source is None or low > high or limit < 1:
        return []
    bounds = [key_of(model_id, low), key_of(model_id, high)]
    order = "DESC" if newest_first else "ASC"
    if source.table == "events" and not source.values:
        checks = "".join(f" AND {check}" for check in source.checks)
        return execute(
            f"{rows.SELECT} s WHERE event_key BETWEEN ? AND ?{checks}"
            f" ORDER BY event_key {order} LIMIT ?",
            (*bounds, *source.check_values, limit),
        ).fetchall()
    keys = _first_keys(execute, source, bounds, limit, newest_first)
    found: list[Any] = []
    for piece in pieces(keys):
        found += execute(
            f"{rows.SELECT} WHERE event_key IN ({marks(len(piece))}) ORDER BY event_key {order}",
            piece,
        ).fetchall()
    return found


def _source(execute: Execute, model_id: int, where: EventFilter) -> _Source | None:
    """The index to read and what to check beside it; None when nothing can pass."""
    kinds, actors = set(where.kinds), sorted(set(where.actors))
    if where.parameter is not None:
        ids = _parameter_ids(execute, model_id, where.parameter)
        if not ids or (kinds and UPDATED not in kinds):
            return None
        source = _Source("touches", "s.parameter_id = ?", ids)
        if actors:
            _check_actors(source, actors)
        return source
    if kinds and UPDATED not in kinds:
        # The index leaves updates out, and is used only by a condition that says so.
        source = _Source("events", "s.kind = ? AND s.kind <> 'updated'", sorted(kinds))
        if actors:
            _check_actors(source, actors)
        return source
    source = _Source("annotations", "s.actor = ?", actors) if actors else _Source("events", "", ())
    if kinds:
        of_kind = f"kind IN ({marks(len(kinds))})"
        source.checks.append(
            f"EXISTS (SELECT 1 FROM events e WHERE e.event_key = s.event_key AND e.{of_kind})"
            if actors
            else f"s.{of_kind}"
        )
        source.check_values += sorted(kinds)
    return source


def _check_actors(source: _Source, actors: Sequence[str]) -> None:
    source.checks.append(
        "EXISTS (SELECT 1 FROM annotations a WHERE a.event_key = s.event_key"
        f" AND a.actor IN ({marks(len(actors))}))"
    )
    source.check_values += actors


def _first_keys(
    execute: Execute, source: _Source, bounds: list[int], limit: int, newest_first: bool
) -> list[int]:
    """The first `limit` keys in order, over all values of the source."""
    low, high = bounds
    order = "DESC" if newest_first else "ASC"
    one = (
        f"SELECT event_key FROM (SELECT s.event_key FROM {source.table} s"
        f" WHERE {source.condition} AND s.event_key BETWEEN ? AND ?"
        f"{''.join(f' AND {check}' for check in source.checks)}"
        f" ORDER BY s.event_key {order} LIMIT ?) AS first"
    )
    keys: list[int] = []
    for piece in pieces(source.values, _MERGED):
        params: list[Any] = []
        for value in piece:
            params += [value, low, high, *source.check_values, limit]
        fresh = execute(" UNION ALL ".join([one] * len(piece)), params)
        keys = sorted({*keys, *(key for (key,) in fresh)}, reverse=newest_first)[:limit]
        if len(keys) == limit:
            # What comes after these in order is not wanted from the other values either.
            low, high = (keys[-1], high) if newest_first else (low, keys[-1])
    return keys


def _parameter_ids(execute: Execute, model_id: int, pattern: str) -> list[int]:
    names = execute("SELECT parameter_id, name FROM parameters WHERE model_id = ?", (model_id,))
    return [number for number, name in names if fnmatchcase(name.removeprefix(_WEIGHTS), pattern)]
