"""Finding events: times as ranges of seqs, filters as ranges of indexes.

Times never decrease along a log, so a time is found by bisection over the primary key. A filter
becomes lists of keys that lie in order in some index (of a parameter, of a parameter and an actor,
of an actor and a kind, of a rare kind); of each list the first keys are read, then merged. So the
cost depends on the page and on the number of lists, not on the length of the log.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from weightledger.ledger.events import KINDS, REDACTED, REPAIRED, UPDATED
from weightledger.ledger.sql.backend import Backend, Execute, KeyLists
from weightledger.ledger.sql.bulk import marks, pieces
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.store import EventFilter, rows
from weightledger.ledger.store.rows import key_of

_WEIGHTS = "weights/"
_MOST_MOMENT = (1 << 63) - 1

_FEW = 4 * len(KINDS)  # lists that are read one by one: four actors times all kinds
_PAGE = 1000  # a longer one reads most of every list anyway
_STRETCH, _LONGER, _CROWDED = 4, 32, 64  # multiples of the page; how much longer each time


def last_seq(execute: Execute, model_id: int) -> int:
    """The seq of a model's last event; -1 when it has none."""
    first = key_of(model_id, 0)
    (key,) = execute(
        "SELECT max(event_key) FROM events WHERE event_key BETWEEN ? AND ?",
        (first, key_of(model_id, SEQ_MASK)),
    ).fetchone()
    return -1 if key is None else key - first


_OF_KIND = (  # the index leaves updates out, and is used only by a condition that says so
    "(SELECT max(event_key) FROM events WHERE kind = ? AND kind <> 'updated'"
    " AND event_key BETWEEN ? AND ?)"
)


def last_change(execute: Execute, model_id: int) -> int:
    """The key of the last event that changed what is known of earlier ones; -1 for none."""
    bounds = key_of(model_id, 0), key_of(model_id, SEQ_MASK)
    row = execute(
        f"SELECT {_OF_KIND}, {_OF_KIND}", (REDACTED, *bounds, REPAIRED, *bounds)
    ).fetchone()
    return max(-1 if key is None else key for key in row)


# Bisection over the primary key in one statement, since each costs a round trip.
_MIDDLE = "(low + high + 1) / 2"
_LATER = f"(SELECT recorded_at FROM events WHERE event_key = {_MIDDLE}) > ?"
_SEQ_AT = (
    "WITH RECURSIVE span(low, high) AS (SELECT CAST(? AS bigint),"
    " (SELECT max(event_key) FROM events WHERE event_key BETWEEN ? AND ?)"
    f" UNION ALL SELECT CASE WHEN {_LATER} THEN low ELSE {_MIDDLE} END,"
    f" CASE WHEN {_LATER} THEN {_MIDDLE} - 1 ELSE high END"
    " FROM span WHERE low < high) SELECT low FROM span WHERE low >= high"
)


def seq_at(execute: Execute, model_id: int, moment: int) -> int:
    """The seq of the last event recorded at or before a time (UTC microseconds); -1 for none."""
    first, last = key_of(model_id, 0), key_of(model_id, SEQ_MASK)
    moment = max(-_MOST_MOMENT, min(moment, _MOST_MOMENT))
    row = execute(_SEQ_AT, (first - 1, first, last, moment, moment)).fetchone()
    return -1 if row is None else row[0] - first


def span(execute: Execute, model_id: int, where: EventFilter) -> tuple[int, int]:
    """The first and the last seq that a filter's bounds leave; the last may be beyond the log."""
    low = max(where.min_seq or 0, 0)
    high = SEQ_MASK if where.max_seq is None else where.max_seq
    if where.since is not None:
        low = max(low, seq_at(execute, model_id, where.since - 1) + 1)
    if where.until is not None:
        high = min(high, seq_at(execute, model_id, where.until))
    return low, high


def select(
    execute: Execute,
    backend: Backend,
    model_id: int,
    where: EventFilter,
    limit: int,
    newest_first: bool,
) -> list[Any]:
    """Rows of events that pass a filter, at most `limit`, by seq."""
    low, high = span(execute, model_id, where)
    if low > high or limit < 1:
        return []
    bounds = key_of(model_id, low), key_of(model_id, high)
    order = "DESC" if newest_first else "ASC"
    lists = _lists(execute, model_id, where)
    if lists is None:
        kinds = sorted(set(where.kinds))
        of_kind = f" AND kind IN ({marks(len(kinds))})" if kinds else ""
        read = execute(
            f"{rows.SELECT} WHERE event_key BETWEEN ? AND ?{of_kind}"
            f" ORDER BY event_key {order} LIMIT ?",
            (*bounds, *kinds, limit),
        ).fetchall()
        if not kinds:
            last = key_of(model_id, last_seq(execute, model_id))
            _require_gapless(read, (bounds[0], min(bounds[1], last)), limit, newest_first)
        return read
    keys = _first_keys(execute, backend, model_id, lists, bounds, limit, order)
    found: list[Any] = []
    for piece in pieces(keys):
        read = execute(
            f"{rows.SELECT} WHERE event_key IN ({marks(len(piece))}) ORDER BY event_key {order}",
            piece,
        ).fetchall()
        if len(read) < len(piece):  # what it is found by says that it is there
            rows.require_each(read, piece)
        found += read
    return found


def _require_gapless(
    read: Sequence[Any], bounds: tuple[int, int], limit: int, newest_first: bool
) -> None:
    """CorruptLedger where one of the events that the bounds and the limit ask for is missing."""
    first, last = bounds
    count = min(max(last - first + 1, 0), limit)
    keys = range(last, last - count, -1) if newest_first else range(first, first + count)
    if len(read) != count or (read and (read[0][0], read[-1][0]) != (keys[0], keys[-1])):
        rows.require_each(read, sorted(keys))


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
    model_id: int,
    lists: Sequence[KeyLists],
    bounds: tuple[int, int],
    limit: int,
    order: str,
) -> list[int]:
    """The first `limit` keys in order of the union of all lists."""
    newest_first = order == "DESC"
    if sum(len(some.values) for some in lists) > _FEW and limit <= _PAGE:
        found = _of_many(execute, backend, model_id, lists, bounds, limit, newest_first)
        if found is not None:
            return sorted(found, reverse=newest_first)[:limit]
    keys: list[int] = []
    for some in lists:
        fresh = backend.first_of_each(execute, some, bounds, limit, order)
        keys = sorted({*keys, *fresh}, reverse=newest_first)[:limit]
        if len(keys) == limit:
            # What comes after these in order is not wanted from the other lists either.
            bounds = (keys[-1], bounds[1]) if newest_first else (bounds[0], keys[-1])
    return keys


def _of_many(
    execute: Execute,
    backend: Backend,
    model_id: int,
    lists: Sequence[KeyLists],
    bounds: tuple[int, int],
    limit: int,
    newest_first: bool,
) -> set[int] | None:
    """The keys of lists that are many, where the first `limit` of their union are.

    Looks into a stretch of the log at the end that is wanted, then into ever longer ones: one scan
    that visits a hundred lists costs a tenth of a hundred scans. None when a stretch is so crowded
    that the lists are better read one by one.
    """
    low, high = bounds
    high = min(high, key_of(model_id, last_seq(execute, model_id)))
    most = _CROWDED * limit
    # They differ in the actor alone.
    one = lists[0]
    given = [value for some in lists for value in some.given]
    by = f" AND s.actor IN ({marks(len(given))})" if given else one.condition
    found = (
        f"SELECT s.event_key FROM {one.table} s"
        f" WHERE s.{one.column} {backend.among(one.kind)}{by}"
        " AND s.event_key BETWEEN ? AND ? LIMIT ?"
    )

    def within(length: int) -> list[int]:
        stretch = (
            (max(low, high - length), high) if newest_first else (low, min(high, low + length))
        )
        rows = execute(found, (backend.many(one.values), *given, *stretch, most))
        return [key for (key,) in rows.fetchall()]

    length, whole = _STRETCH * limit, high - low
    keys = within(length)
    if len(set(keys)) * _LONGER < limit:  # so rare that all there are may be few enough
        everything = within(whole)
        if len(everything) < most:
            return set(everything)
    while len(keys) < most:
        if len(set(keys)) >= limit or length >= whole:
            return set(keys)
        length *= _LONGER
        keys = within(length)
    return None


def _parameter_ids(execute: Execute, model_id: int, pattern: str) -> list[int]:
    return list(matching(execute, model_id, pattern))


def matching(execute: Execute, model_id: int, pattern: str) -> dict[int, str]:
    """The full names of the parameters that a glob over bare names stands for, by their ids."""
    names = execute("SELECT parameter_id, name FROM parameters WHERE model_id = ?", (model_id,))
    return {
        number: name for number, name in names if fnmatchcase(name.removeprefix(_WEIGHTS), pattern)
    }


def parameters(execute: Execute, model_id: int) -> int:
    """How many parameters updates count for."""
    sql = "SELECT count(*) FROM parameters WHERE model_id = ?"
    (count,) = execute(sql, (model_id,)).fetchone()
    return int(count)
