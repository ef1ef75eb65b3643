"""The tree of states as a picture: time from left to right, a lane for each branch."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

from weightledger.ledger.store import StateChange

_STEP, _LANE, _RADIUS, _LEFT, _TOP = 18, 22, 4.5, 14, 16
_LABEL_ROOM = 16


def tree_picture(
    changes: Sequence[StateChange], names: Mapping[int, str], live: int, link: str
) -> str:
    """An SVG of these state changes, oldest first.

    `names` are labels of nodes by seq, `live` is the node that is served, and `link` what stands
    before a seq in the address of an event. A branch that was left is grey.
    """
    nodes = [change for change in changes if change.node == change.seq]
    if not nodes:
        return ""
    parents = {node.seq: node.parent for node in nodes}
    on_way = _way(parents, live)
    lanes = _lanes(nodes)
    place = {
        node.seq: (_LEFT + at * _STEP, _TOP + _LABEL_ROOM + lanes[node.seq] * _LANE)
        for at, node in enumerate(nodes)
    }
    width = _LEFT * 2 + (len(nodes) - 1) * _STEP + 60
    height = _TOP * 2 + _LABEL_ROOM + (max(lanes.values()) + 1) * _LANE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tree" width="{width}"'
        f' height="{height}" viewBox="0 0 {width} {height}"><title>The tree of states</title>'
        f"<desc>{len(nodes)} states, from event {nodes[0].seq} to event {nodes[-1].seq}; event"
        f" {live} is live</desc>"
    ]
    for node in nodes:
        x, y = place[node.seq]
        if node.parent in place:
            from_x, from_y = place[node.parent]
            kind = "way" if node.seq in on_way else "left"
            turn = "" if from_y == y else f" L{from_x + _STEP / 2:g} {y:g}"
            parts.append(f'<path class="{kind}" d="M{from_x:g} {from_y:g}{turn} H{x:g}"/>')
    for node in nodes:
        x, y = place[node.seq]
        name = names.get(node.seq)
        kind = "live" if node.seq == live else "way" if node.seq in on_way else "left"
        title = f"event {node.seq}" + (f", {name}" if name else "")
        parts.append(
            f"<a href={quoteattr(link + str(node.seq))}><title>{escape(title)}</title>"
            f'<circle class="{kind}{" named" if name else ""}" cx="{x:g}" cy="{y:g}"'
            f' r="{_RADIUS + (1.5 if name else 0):g}"/>'
        )
        if name:
            parts.append(
                f'<text x="{x:g}" y="{y - 9:g}" text-anchor="middle">{escape(name[:12])}</text>'
            )
        if node.seq == live:
            parts.append(f'<text class="live" x="{x + 10:g}" y="{y + 4:g}">← live</text>')
        parts.append("</a>")
    return "".join(parts) + "</svg>"


def _way(parents: Mapping[int, int | None], live: int) -> set[int]:
    """The nodes that the live one stands on, itself included."""
    way: set[int] = set()
    at: int | None = live
    while at is not None and at in parents:
        way.add(at)
        at = parents[at]
    return way


def _lanes(nodes: Sequence[StateChange]) -> dict[int, int]:
    """A lane for each node: its parent's, if that is the lane's last one, else a new one."""
    lanes: dict[int, int] = {}
    last: dict[int, int] = {}
    for node in nodes:
        lane = lanes.get(node.parent, 0) if node.parent is not None else 0
        if last and last.get(lane) != node.parent:
            lane = max(last) + 1
        lanes[node.seq] = lane
        last[lane] = node.seq
    return lanes
