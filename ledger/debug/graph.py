"""The tree of states as lines of text, as people know it from git: a lane for each branch.

Between two rollbacks each event stands on the one before it; a rollback begins a branch at the
state it went back to, and the events it left behind end in the air:

    * 6 update_4
    o 5 rolled back to seq:1
    | * 4 update_3
    | * 3 update_2
    |/
    * 1 update_1

Events may be left out (by a filter): the lanes stay where they are.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Drawn:
    """What stands before one event: lines that join lanes, and the start of its own line."""

    joins: Sequence[str]
    start: str


@dataclass(frozen=True, slots=True)
class DrawnEvent:
    """An event to draw: its seq and the mark it gets."""

    seq: int
    mark: str = "*"


def graph(shown: Sequence[DrawnEvent], rollbacks: Sequence[tuple[int, int]]) -> list[Drawn]:
    """How each of `shown` (newest first) is drawn.

    `rollbacks` are the seq of each rollback and the node it went to: all of those between the
    oldest event shown and the head, those that are not shown included.
    """
    ordered = sorted(rollbacks)
    starts = [-1, *(seq for seq, _ in ordered)]
    bases = [None, *(node for _, node in ordered)]
    lanes: list[int] = []  # the branch that each shows, by the number of its rollback
    drawn: list[Drawn] = []
    for event in shown:
        joins: list[str] = []
        while (ended := _ended(lanes, starts, bases, event.seq)) is not None:
            base = bases[lanes[ended]]
            assert base is not None
            branch = bisect_right(starts, base) - 1
            if branch not in lanes:
                lanes[ended] = branch
                continue
            left, right = sorted((ended, lanes.index(branch)))
            joins.append(_join(len(lanes), left, right))
            lanes[left] = branch
            del lanes[right]
        own = bisect_right(starts, event.seq) - 1
        if own not in lanes:
            lanes.append(own)
        marks = [event.mark if branch == own else "|" for branch in lanes]
        drawn.append(Drawn(joins, " ".join(marks)))
    return drawn


def _ended(
    lanes: Sequence[int], starts: Sequence[int], bases: Sequence[int | None], seq: int
) -> int | None:
    """A lane whose branch began after `seq`, and at a state that is not before it."""
    for lane, branch in enumerate(lanes):
        base = bases[branch]
        if starts[branch] > seq and base is not None and base >= seq:
            return lane
    return None


def _join(count: int, left: int, right: int) -> str:
    """The line on which lane `right` runs into lane `left`; those beyond it move up."""
    line = ["|" if at % 2 == 0 and at // 2 < right else " " for at in range(2 * count)]
    for at in range(2 * left + 1, 2 * right - 1, 2):
        line[at] = "_"
    for lane in range(right, count):
        line[2 * lane - 1] = "/"
    return "".join(line).rstrip()
