"""The tree of states as a picture: the newest on top, what is live in the first lane.

States that only follow one another are drawn as one line with their number, so that a tree of a
thousand updates shows what matters: where it branched, what has a name, and what is live.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from weightledger.ledger.store import StateChange

_ROW, _LANE, _LEFT, _TOP, _RADIUS = 22, 16, 12, 14, 4.5
_CHARACTER = 6.8  # width of one, on average
_MOST_NAMES = 3  # of one state


@dataclass(frozen=True, slots=True)
class TreeLinks:
    """Where a state and a stretch of events are shown: `state` stands before a seq."""

    state: str
    between: str  # with {first} and {last}


@dataclass(frozen=True, slots=True)
class _Shown:
    """A state that is drawn: its parent among those, and how many lie between the two."""

    seq: int
    parent: int | None
    between: int


def tree_picture(
    changes: Sequence[StateChange],
    names: Mapping[int, Sequence[str]],
    live: int,
    links: TreeLinks,
    most: int,
) -> str:
    """An SVG of the states that these changes made, `most` of them at most.

    `names` are those of nodes by seq, `live` is the node that is served.
    """
    parents = {one.seq: one.parent for one in changes if one.node == one.seq}
    if not parents:
        return ""
    shown = _shown(parents, names, live)[:most]
    places, height, lanes = _places(shown, live)
    way = _way(parents, live)
    left = _LEFT * 2 + lanes * _LANE
    labels = {one.seq: _label(one.seq, names.get(one.seq, ()), live) for one in shown}
    width = left + int(_CHARACTER * max(len(text) for text, _ in labels.values())) + 12
    lines: list[str] = []
    marks: list[str] = []
    for one in shown:
        x, y = places[one.seq]
        look = "way" if one.seq in way else "left"
        lines.append(_edge(one, places, look, height))
        if one.between:
            first, last = (one.parent or 0) + 1, one.seq - 1
            href = quoteattr(links.between.format(first=first, last=last))
            noun = "state" if one.between == 1 else "states"
            marks.append(
                f'<a href={href}><text class="run" x="{left}" y="{y + _ROW + 4}">'
                f"{one.between:,} {noun}</text></a>"
            )
        text, inside = labels[one.seq]
        kind = "live" if one.seq == live else look
        named = " named" if names.get(one.seq) else ""
        marks.append(
            f"<a href={quoteattr(links.state + str(one.seq))}><title>{escape(text)}</title>"
            f'<circle class="{kind}{named}" cx="{x}" cy="{y}" r="{_RADIUS}"/>'
            f'<text x="{left}" y="{y + 4}">{inside}</text></a>'
        )
    said = (
        f"The newest of the {len(parents):,} states that were looked at, newest first; the state of"
        f" event {live} is live"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tree" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}"><title>The tree of states</title><desc>{said}</desc>'
        + "".join([*lines, *marks])
        + "</svg>"
    )


def _shown(
    parents: Mapping[int, int | None], names: Mapping[int, Sequence[str]], live: int
) -> list[_Shown]:
    """The states that matter, newest first: all but those that only follow one another."""
    children: dict[int, int] = {}
    for parent in parents.values():
        if parent is not None:
            children[parent] = children.get(parent, 0) + 1
    oldest = min(parents)

    def matters(seq: int) -> bool:
        parent = parents[seq]
        return (
            seq in (live, oldest)
            or seq in names
            or children.get(seq, 0) != 1
            or (parent is not None and children[parent] > 1)
        )

    shown = []
    for seq in sorted(filter(matters, parents), reverse=True):
        between, parent = 0, parents[seq]
        while parent is not None and parent in parents and not matters(parent):
            between, parent = between + 1, parents[parent]
        shown.append(_Shown(seq, parent, between))
    return shown


def _places(shown: Sequence[_Shown], live: int) -> tuple[dict[int, tuple[float, float]], int, int]:
    """Where each state is drawn, the height of the picture, and how many lanes it has.

    A lane is kept for the parent of the last state in it; the first one leads to what is live.
    """
    waiting: list[int | None] = [live]  # of each lane the state that comes next in it
    places: dict[int, tuple[float, float]] = {}
    y, lanes = _TOP, 1
    for one in shown:
        if one.seq in waiting:
            lane = waiting.index(one.seq)
        elif None in waiting:
            lane = waiting.index(None)
        else:
            lane = len(waiting)
            waiting.append(None)
        waiting = [None if seq == one.seq else seq for seq in waiting]
        waiting[lane] = one.parent
        lanes = max(lanes, lane + 1)
        places[one.seq] = (_LEFT + lane * _LANE, y)
        y += _ROW * (2 if one.between else 1)
    return places, y, lanes


def _edge(one: _Shown, places: Mapping[int, tuple[float, float]], look: str, height: int) -> str:
    """The line from a state down to its parent; to the bottom where that is not drawn."""
    if one.parent is None:
        return ""
    x, y = places[one.seq]
    to_x, to_y = places.get(one.parent, (x, height))
    dashed = " run" if one.between else ""
    turn = "" if to_x == x else f" V{to_y - _ROW / 2:g} L{to_x:g} {to_y:g}"
    path = f"M{x:g} {y:g}" + (turn or f" V{to_y:g}")
    return f'<path class="{look}{dashed}" d="{path}"/>'


def _label(seq: int, names: Sequence[str], live: int) -> tuple[str, str]:
    """What stands beside a state, as text and with its colours."""
    some = " ".join(names[:_MOST_NAMES]) + (" …" if len(names) > _MOST_NAMES else "")
    text = " ".join(part for part in (some, f"{seq}", "← live" if seq == live else "") if part)
    inside = f'<tspan class="name">{escape(some)}</tspan> ' if some else ""
    inside += f"{seq}"
    if seq == live:
        inside += ' <tspan class="live">← live</tspan>'
    return text, inside


def _way(parents: Mapping[int, int | None], live: int) -> set[int]:
    """The nodes that the live one stands on, itself included."""
    way: set[int] = set()
    at: int | None = live
    while at is not None and at in parents:
        way.add(at)
        at = parents[at]
    return way
