"""Pages of measurements, as REST and the command show them."""

from collections.abc import Iterable
from typing import Any

from weightledger.ledger.errors import NotFound
from weightledger.ledger.history.positions import iso_time
from weightledger.ledger.monitoring.metrics import METRICS
from weightledger.ledger.monitoring.reading import By, put_together
from weightledger.ledger.monitoring.rollups import Rollup


def page(
    rollups: Iterable[Rollup],
    by: By,
    *,
    after: str | None = None,
    before: str | None = None,
    limit: int,
) -> dict[str, Any]:
    """A page in the form of every list; NotFound for a cursor that is no item's id.

    A span that is not over yet grows, and its item keeps its id; one that was made wider is another
    item.
    """
    told = put_together(rollups, by)
    first, last = 0, len(told)
    ids = {rollup_id(one): at for at, one in enumerate(told)} if after or before else {}
    for name, cursor in (("after", after), ("before", before)):
        if cursor is not None and cursor not in ids:
            raise NotFound(f"{name}: there is no item {cursor!r:.200} in this list", param=name)
    if after is not None:
        first = ids[after] + 1
    if before is not None:
        last = ids[before]
        first = max(first, last - limit)
    shown = [rollup_item(one) for one in told[first:last][:limit]]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": last - first > limit if before is None else first > 0,
    }


def rollup_item(one: Rollup) -> dict[str, Any]:
    """Measurements of one metric, summed up; `stddev` is None for a single value."""
    known = METRICS.get(one.metric)
    return {
        "id": rollup_id(one),
        "object": "rollup",
        "metric": one.metric,
        "unit": known.unit if known else "",
        "source": one.source,
        "replica": one.replica,
        "first_seq": one.first_seq,
        "last_seq": one.last_seq,
        "start": iso_time(one.start_us),
        "end": iso_time(one.end_us),
        "count": one.count,
        "mean": one.mean,
        "stddev": one.variance**0.5 if one.count > 1 else None,
        "min": one.least,
        "max": one.most,
        "p50": one.quantile(0.5),
        "p90": one.quantile(0.9),
        "p99": one.quantile(0.99),
    }


def rollup_id(one: Rollup) -> str:
    """What names a rollup in a list."""
    place = (one.start_us, one.end_us, one.first_seq, one.last_seq, one.metric, one.source)
    return ":".join(map(str, place if one.replica is None else (*place, one.replica)))
