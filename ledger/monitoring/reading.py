"""Rollups as people ask for them: by span of time, by state, or all together."""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Literal

from weightledger.ledger.monitoring.condensing import apart
from weightledger.ledger.monitoring.rollups import Rollup, merged

By = Literal["time", "seq", "all"]
"""How rollups are put together: one for each span of time and state, one for each state over all
the time that is asked for, or one of everything."""

WAYS: tuple[By, ...] = ("time", "seq", "all")


def put_together(rollups: Iterable[Rollup], by: By) -> list[Rollup]:
    """One rollup for each group of the same metric, source and replica, newest first."""
    ordered = sorted(rollups, key=_place)
    groups = _groups(ordered, _place if by == "time" else _series)
    told = []
    for group in groups:
        for part in apart(group) if by == "seq" else [group]:
            whole = merged(part) if len(part) > 1 else part[0]
            assert whole is not None
            told.append(whole)
    return sorted(told, key=lambda one: (-one.start_us, -one.first_seq, *_series(one)))


def _groups(
    ordered: list[Rollup], key: Callable[[Rollup], tuple[object, ...]]
) -> Iterator[list[Rollup]]:
    return (list(group) for _, group in groupby(ordered, key))


def _series(one: Rollup) -> tuple[object, ...]:
    return (one.metric, one.source, one.replica or "")


def _place(one: Rollup) -> tuple[object, ...]:
    return (*_series(one), one.first_seq, one.last_seq, one.start_us, one.end_us)
