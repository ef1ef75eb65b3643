"""Runs of updates of one actor, folded: a thousand steps of a training run are one line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightledger.ledger.events import UPDATED

Item = Mapping[str, Any]

LEAST = 4  # events that are folded


@dataclass(frozen=True, slots=True)
class Run:
    """Events that follow one another, newest first; `folded` where they are shown as one line."""

    events: Sequence[Item]
    folded: bool

    @property
    def newest(self) -> Item:
        """The last one."""
        return self.events[0]

    @property
    def oldest(self) -> Item:
        """The first one."""
        return self.events[-1]


def runs(events: Sequence[Item], named: frozenset[int] | set[int] = frozenset()) -> Iterator[Run]:
    """The events in runs of updates by one actor; `named` are seqs that stand by themselves."""
    run: list[Item] = []
    for event in events:
        if run and not (_joins(run[-1], event) and run[-1]["seq"] not in named):
            yield from _told(run)
            run = []
        if event["seq"] in named and run:
            yield from _told(run)
            run = []
        run.append(event)
    yield from _told(run)


def _joins(one: Item, other: Item) -> bool:
    """Whether two events, one after the other, are steps of the same run."""
    return bool(
        one["kind"] == other["kind"] == UPDATED
        and one["actor"] == other["actor"]
        and one["reason"] == other["reason"]
    )


def _told(run: list[Item]) -> Iterator[Run]:
    if len(run) >= LEAST:
        yield Run(tuple(run), True)
    else:
        for event in run:
            yield Run((event,), False)
