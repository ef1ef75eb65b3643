"""Touches: which updates counted as one of which parameter, and as its how manieth."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from weightledger.ledger.sql.backend import Backend

_COUNT = (
    "INSERT INTO touches (parameter_id, event_key, number, actor)"
    " SELECT v.value, {key}, 1 + coalesce((SELECT t.number FROM touches t"
    " WHERE t.parameter_id = v.value ORDER BY t.event_key DESC LIMIT 1), 0), CAST(? AS text)"
    " FROM {ids}"
)
_ONE = "(SELECT CAST(? AS bigint) AS value) AS v"


def source(backend: Backend, ids: Sequence[int]) -> tuple[str, Any]:
    """Parameters' ids as a row source, v.value, and its one parameter.

    One id, as of nearly every update, is a number: of a list PostgreSQL does not know how long it
    is, so it finds a plan for all to be dearer and plans the statement anew each time, which takes
    it a third as long again as all the rest.
    """
    if len(ids) == 1:
        return _ONE, ids[0]
    return backend.each("bigint"), backend.many(ids)


@cache
def counting(ids: str, key: str = "?") -> str:
    """The statement that counts an update of each of `ids`, a row source.

    Its parameters are the event's key, where that is one, its actor, and that of the row source.
    Whoever appended the event before has committed.
    """
    return _COUNT.format(key=key, ids=ids)
