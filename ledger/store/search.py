"""Finding events: times as ranges of seqs, filters as ranges of indexes.

Times never decrease along a log, so a time is found by bisection over the primary key. A filter
becomes lists of keys that lie in order in some index (of a parameter, of a parameter and an actor,
of an actor and a kind, of a rare kind); of each list the first keys are read, then merged. So the
cost depends on the page and on the number of lists, not on the length of the log.
"""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from ledger.events import KINDS, UPDATED
from ledger.store import EventFilter, rows
from ledger.store.backend import Backend, Execute, KeyLists
from ledger.store.bulk import marks, pieces
from ledger.store.rows import key_of
from ledger.store.tables import SEQ_MASK

_WEIGHTS = "weights/"


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
    execute: Execute,
    backend: Backend,
    model_id: int,
    where: EventFilter,
    limit: int,
    newest_first: bool,
) -> list[Any]:
    """Rows of events that pass a filter, at most `limit`, by seq."""
    low = max(where.min_seq or 0, 0)
    high = SEQ_MASK if where.max_seq is None else where.max_seq
    if where.since is not None:
        low = max(low, seq_at(execute, model_id, where.since - 1) + 1)
    if where.until is not None:
        high = min(high, seq_at(execute, model_id, where.until))
    if low > high or limit < 1:
        return []
    bounds = key_of(model_id, low), key_of(model_id, high)
    order = "DESC" if newest_first else "ASC"
    lists = _lists(execute, model_id, where)
    if lists is None:
        kinds = sorted(set(where.kinds))
        of_kind = f" AND kind IN ({marks(len(kinds))})" if kinds else ""
        return execute(
            f"{rows.SELECT} WHERE event_key BETWEEN ? AND ?{of_kind}"
            f" ORDER BY event_key {order} LIMIT ?",
            (*bounds, *kinds, limit),
        ).fetchall()
    keys = _first_keys(execute, backend, lists, bounds, limit, order)
    found: list[Any] = []
    for piece in pieces(keys):
        found += execute(
            f"{rows.SELECT} WHERE event_key IN ({marks(len(piece))}) ORDER BY event_key {order}",
            piece,
        ).fetchall()
    return found


def _lists(execute: Execute, model_id: int, where: EventFilter) -> list[KeyLists] | None:
    """The lists whose union is what passes, times aside; None when that is nearly everything."""
    kinds, actors = sorted(set(where.kinds)), sorted(set(where.actors))
    if where.parameter is not None:
        if kinds and UPDATED not in kinds:
            return []
        ids = _parameter_ids(execute, model_id, where.parameter)
        if not actors:
            return [KeyLists("touches", "parameter_id", ids)]
        return [
            KeyLists("touches", "parameter_id", ids, condition=" AND s.actor = ?", given=(actor,))
            for actor in actors
        ]
    if actors:
        return [
            KeyLists("annotations", "kind", kinds or KINDS, "text", " AND s.actor = ?", (actor,))
            for actor in actors
        ]
    if kinds and UPDATED not in kinds:
        # The index leaves updates out, and is used only by a condition that says so.
        return [KeyLists("events", "kind", kinds, "text", " AND s.kind <> 'updated'")]
    return None


def _first_keys(
    execute: Execute,
    backend: Backend,
    lists: Sequence[KeyLists],
    bounds: tuple[int, int],
    limit: int,
    order: str,
) -> list[int]:
    """The first `limit` keys in order of the union of all lists."""
    newest_first = order == "DESC"
    keys: list[int] = []
    for some in lists:
        if len(some.values) > limit:
            some, bounds = _promising(execute, backend, some, bounds, limit, newest_first)
        fresh = backend.first_of_each(execute, some, bounds, limit, order)
        keys = sorted({*keys, *fresh}, reverse=newest_first)[:limit]
        if len(keys) == limit:
            bounds = _up_to(keys[-1], bounds, newest_first)
    return keys


def _promising(
    execute: Execute,
    backend: Backend,
    lists: KeyLists,
    bounds: tuple[int, int],
    limit: int,
    newest_first: bool,
) -> tuple[KeyLists, tuple[int, int]]:
    """The lists that can have any of the first `limit` keys, and the bounds these keys are in.

    When so many lists begin before some key, no key behind it is among the first.
    """
    best = "max" if newest_first else "min"
    begins = execute(
        f"SELECT v.value, (SELECT {best}(s.event_key) FROM {lists.table} s WHERE"
        f" s.{lists.column} = v.value{lists.condition} AND s.event_key BETWEEN ? AND ?)"
        f" FROM {backend.each(lists.kind)}",
        (*lists.given, *bounds, backend.many(lists.values)),
    ).fetchall()
    first = {value: key for value, key in begins if key is not None}
    distinct = sorted(set(first.values()), reverse=newest_first)
    if len(distinct) >= limit:
        bounds = _up_to(distinct[limit - 1], bounds, newest_first)
    low, high = bounds
    values = [value for value, key in first.items() if low <= key <= high]
    return replace(lists, values=values), bounds


def _up_to(key: int, bounds: tuple[int, int], newest_first: bool) -> tuple[int, int]:
    low, high = bounds
    return (key, high) if newest_first else (low, key)


def _parameter_ids(execute: Execute, model_id: int, pattern: str) -> list[int]:
    names = execute("SELECT parameter_id, name FROM parameters WHERE model_id = ?", (model_id,))
    return [number for number, name in names if fnmatchcase(name.removeprefix(_WEIGHTS), pattern)]
