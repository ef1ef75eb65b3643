"""What each update of a range did to each layer: a table of layers × updates.

The range goes from a state to one that came of it. Where there are more updates than columns,
several share one, and what is measured is what they did together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from weightledger.ledger.debug.diff import batches, copies, differing, digests
from weightledger.ledger.debug.measured import finite
from weightledger.ledger.debug.names import layer_of
from weightledger.ledger.debug.numbers import compare, ratio
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import Event
from weightledger.ledger.history.positions import Position
from weightledger.ledger.history.reader import History, KnownState
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.state import StateDigest

MAX_COLUMNS = 200
MAX_UPDATES = 10_000
"""State changes between the two ends, at most."""


@dataclass(frozen=True, slots=True)
class Column:
    """One state change, or several that share a column: the last of them, and how many."""

    event: Event
    updates: int


@dataclass(frozen=True, slots=True)
class Each:
    """Relative norms of changes: `cells[layer][n]` is what column n did to it, None for nothing.

    A layer whose change has no measure (what was there before is zero, or not comparable) has
    infinity.
    """

    model: str
    before: Position
    after: Position
    columns: Sequence[Column]
    cells: Mapping[str, Sequence[float | None]]

    def to_json(self) -> dict[str, Any]:
        """Plain values; infinity is the text "new"."""
        return {
            "object": "diff.each",
            "model": self.model,
            "from": self.before.text,
            "to": self.after.text,
            "columns": [
                {"id": one.event.name, "seq": one.event.seq, "updates": one.updates}
                for one in self.columns
            ],
            "layers": [
                {"name": name, "relative_norm": [_cell(value) for value in values]}
                for name, values in self.cells.items()
            ],
        }


def each(
    history: History,
    before: str,
    after: str,
    *,
    columns: int = 60,
    known: KnownState | None = None,
) -> Each:
    """What every update from one position to a later one did, layer by layer.

    Raises InvalidRequest where the second state did not come of the first, or is too far away.
    """
    if not 1 <= columns <= MAX_COLUMNS:
        raise InvalidRequest(f"columns must be 1 to {MAX_COLUMNS}, got {columns}", param="columns")
    old, new = history.resolve(before), history.resolve(after)
    nodes = _descent(history, old.node, new.node)
    per = -(-len(nodes) // columns) or 1
    stops = [nodes[min(at + per, len(nodes)) - 1] for at in range(0, len(nodes), per)]
    events = list(history.require_all(stops)) if stops else []
    states = [digests(history, old, known)]
    at = old.node
    for event in events:
        states.append(history.digests(event.node, KnownState(at, states[-1], _untouched)))
        at = event.node
    cells = _walk(history, old, events, states, known)
    counts = [min(per, len(nodes) - at) for at in range(0, len(nodes), per)]
    listed = [Column(event, count) for event, count in zip(events, counts, strict=True)]
    order = sorted(cells, key=lambda name: (-_most(cells[name]), name))
    return Each(history.model, old, new, listed, {name: cells[name] for name in order})


def _descent(history: History, start: int, end: int) -> list[int]:
    """The state changes from one node down to another, the first left out."""
    nodes: list[int] = []
    at: int | None = end
    while at is not None and at > start:
        nodes.append(at)
        if len(nodes) > MAX_UPDATES:
            raise InvalidRequest(
                f"more than {MAX_UPDATES} updates lie between seq:{start} and seq:{end}: choose "
                "states that are nearer to each other, or compare just the two",
                param="from",
            )
        at = history.lineage.parent(at)
    if at != start:
        where = (
            f"seq:{start} is later than seq:{end}: swap them"
            if start > end
            else f"seq:{end} did not come of seq:{start}; the last state before that which it came "
            f"of is seq:{at}: begin there"
        )
        raise InvalidRequest(f"{where}, or compare just the two states", param="from")
    return nodes[::-1]


def _walk(
    history: History,
    old: Position,
    events: Sequence[Event],
    states: Sequence[StateDigest],
    known: KnownState | None,
) -> dict[str, list[float | None]]:
    moves = [differing(one, other) for one, other in pairwise(states)]
    touched = frozenset().union(*moves)
    # Squares of the change and of what was before, of each layer in each column.
    sums: dict[str, list[tuple[float, float] | None]] = {
        layer: [None] * len(events) for layer in sorted({layer_of(name) for name in touched})
    }
    specs = [next(s.specs[name] for s in states if name in s.specs) for name in sorted(touched)]
    for batch in batches(specs):
        names = {spec.name for spec in batch}
        first = sorted(names & states[0].specs.keys())
        held = history.tensors(old.node, old.state, first, known=known) if first else {}
        node = old.node
        for column, event in enumerate(events):
            was, now = states[column], states[column + 1]
            moved = names & moves[column]
            if not moved:
                continue
            there = sorted(moved & now.specs.keys())
            before = KnownState(node, was, copies(held))
            fresh = history.tensors(event.node, event.state_after, there, known=before)
            for name in sorted(moved):
                change = (math.inf, 0.0)
                if was.specs.get(name) == now.specs.get(name):
                    some = compare(now.specs[name], lanes(held[name]), lanes(fresh[name]))
                    change = (some.change_norm, some.norm_before)
                row = sums[layer_of(name)]
                so_far = row[column] or (0.0, 0.0)
                row[column] = math.hypot(so_far[0], change[0]), math.hypot(so_far[1], change[1])
                held.pop(name, None)
            held.update(fresh)
            node = event.node
    return {layer: [_relative(pair) for pair in row] for layer, row in sums.items()}


def _relative(pair: tuple[float, float] | None) -> float | None:
    if pair is None:
        return None
    change, before = pair
    value = ratio(change, before)
    return value if value is not None else (math.inf if change else 0.0)


def _most(values: Sequence[float | None]) -> float:
    return max((value for value in values if value is not None), default=0.0)


def _cell(value: float | None) -> float | str | None:
    return "new" if value == math.inf else finite(value)


def _untouched(name: str) -> Any:
    raise AssertionError(f"tensor {name!r} was read where digests were asked for")
