"""The tree of states, and the cheapest way between two of them.

A state-changing event is a node; its parent is the node it was applied to, which always has a
smaller seq. Moving from one node to another is undoing up to the common ancestor and redoing down;
`cheapest` picks, among places to start from, the one that reads the fewest bytes. Everything that
moves between states asks this function. A forward-only event cannot be undone, and an event whose
payload was pruned leads nowhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.errors import CorruptLedger, Pruned
from weightledger.ledger.history.pruning import NOTHING_PRUNED, Prunings
from weightledger.ledger.store import StateChange

EVENT_COST = 4096
"""What reading one event costs beside its payload, in bytes: many tiny updates are not free."""

_PAGE = 512
_NOT_A_NODE = -2
_NO_PARENT = -1

# Anchors tried on each side of the target: farther ones cost at least an anchor's spacing more.
NEAREST_ANCHORS = 4


@dataclass(frozen=True, slots=True)
class Path:
    """How to reach a node: start somewhere, undo these events, then redo those.

    `undo` and `redo` are seqs in the order in which they are to be applied; `size` is the bytes
    read on the way, the cost of starting included.
    """

    start: int
    undo: tuple[int, ...]
    redo: tuple[int, ...]
    size: int


class Lineage:
    """Parents and payload sizes of nodes, read from the log in pages and kept.

    `load(start, stop)` gives the state-changing events of a range of seqs. Nodes never change,
    so of a page that was incomplete only what came since is read when a newer node is asked for.
    """

    def __init__(
        self, load: Callable[[int, int], Sequence[StateChange]], event_cost: int = EVENT_COST
    ) -> None:
        self._load = load
        self._event_cost = event_cost
        self._parents: dict[int, NDArray[np.int64]] = {}
        self._sizes: dict[int, NDArray[np.int64]] = {}
        self._one_way: dict[int, NDArray[np.bool_]] = {}
        self._next: dict[int, int] = {}  # of each page the seq to go on reading from

    def parent(self, node: int) -> int | None:
        """The node that `node` was applied to; None for the first."""
        page, offset = self._find(node)
        parent = int(self._parents[page][offset])
        return None if parent == _NO_PARENT else parent

    def size(self, node: int) -> int:
        """What it costs to move between `node` and its parent, in bytes."""
        page, offset = self._find(node)
        return int(self._sizes[page][offset])

    def forward_only(self, node: int) -> bool:
        """Whether one can move from its parent to `node`, but not back."""
        page, offset = self._find(node)
        return bool(self._one_way[page][offset])

    def straight(self, start: int, node: int) -> int | None:
        """What it costs to move from `start` to `node`, where each node between was applied to the
        one before; None where it was not, or one of them is not known yet."""
        size, before = 0, start
        for page in range((start + 1) // _PAGE, node // _PAGE + 1):
            if page not in self._parents:
                return None
            at = page * _PAGE
            part = slice(max(start + 1 - at, 0), min(node + 1 - at, _PAGE))
            parents = self._parents[page][part]
            there = np.flatnonzero(parents != _NOT_A_NODE)
            if not len(there):
                continue
            nodes = there + (at + part.start)
            if parents[there[0]] != before or (parents[there[1:]] != nodes[:-1]).any():
                return None
            before = int(nodes[-1])
            size += int(self._sizes[page][part][there].sum())
        return size if before == node else None

    def learn(self, step: StateChange) -> None:
        """Take note of a state-changing event that somebody has read, so that nobody reads it again
        for its parent."""
        page = step.seq // _PAGE
        if page not in self._parents:
            self._begin(page)
        if self._next.get(page, page * _PAGE) == step.seq:
            self._next[page] = step.seq + 1
        self._keep(page, step)

    def _find(self, node: int) -> tuple[int, int]:
        page, offset = divmod(node, _PAGE)
        if page not in self._parents or self._parents[page][offset] == _NOT_A_NODE:
            self._read(page)
        if self._parents[page][offset] == _NOT_A_NODE:
            raise CorruptLedger(f"event {node} is used as a state but is not one", seq=node)
        return page, offset

    def _read(self, page: int) -> None:
        first = page * _PAGE
        if page not in self._parents:
            self._begin(page)
        for step in self._load(self._next.get(page, first), first + _PAGE):
            self._keep(page, step)
            self._next[page] = max(self._next.get(page, first), step.seq + 1)

    def _begin(self, page: int) -> None:
        self._sizes[page] = np.zeros(_PAGE, np.int64)
        self._one_way[page] = np.zeros(_PAGE, np.bool_)
        self._parents[page] = np.full(_PAGE, _NOT_A_NODE, np.int64)

    def _keep(self, page: int, step: StateChange) -> None:
        if step.node == step.seq:
            at = step.seq - page * _PAGE
            self._sizes[page][at] = step.size + self._event_cost
            self._one_way[page][at] = step.forward_only
            # Last, because readers of other threads look for the parents first.
            self._parents[page][at] = _NO_PARENT if step.parent is None else step.parent


def cheapest(
    lineage: Lineage,
    starts: Mapping[int, int],
    target: int,
    pruned: Prunings = NOTHING_PRUNED,
) -> Path:
    """The path to `target` that reads the fewest bytes.

    `starts` maps nodes where one can begin to the bytes that beginning there costs: 0 for live
    weights, the size of the state for a snapshot. `pruned` says which events have no payload any
    more. Raises Pruned when those were needed, CorruptLedger when no start leads to the target.
    """
    order = sorted(starts, key=lambda node: (abs(node - target), node))
    free = [node for node in order if starts[node] == 0]
    older = [node for node in order if starts[node] and node <= target][:NEAREST_ANCHORS]
    newer = [node for node in order if starts[node] and node > target][:NEAREST_ANCHORS]
    best: Path | None = None
    # The nearest ancestor first: anchors near by seq may stand on other branches, a whole history
    # away, and its cost bounds how far they and the others are followed.
    above = ancestor(lineage, lambda node: node in starts, min(starts, default=0), target, pruned)
    for start in ([] if above is None else [above]) + older + newer + free:
        limit = best.size if best else None
        path = _between(lineage, start, target, starts[start], limit, pruned)
        if path is not None:
            best = path
    if best is None:
        raise _unreachable(lineage, target, pruned)
    return best


def within(
    lineage: Lineage, start: int, target: int, limit: int, pruned: Prunings = NOTHING_PRUNED
) -> Path | None:
    """The path between two nodes if it reads fewer than `limit` bytes and nothing bars it."""
    return _between(lineage, start, target, 0, limit, pruned)


def ancestor(
    lineage: Lineage,
    begins: Callable[[int], bool],
    floor: int,
    target: int,
    pruned: Prunings = NOTHING_PRUNED,
) -> int | None:
    """The nearest node on the way up from `target`, itself included, where one can begin.

    None when an event on the way was pruned, or no such node is `floor` or later.
    """
    at: int | None = target
    while at is not None and at >= floor:
        if begins(at):
            return at
        if pruned(at):
            return None
        at = lineage.parent(at)
    return None


def _unreachable(lineage: Lineage, target: int, pruned: Prunings) -> Pruned | CorruptLedger:
    """Why no start leads to a node: gc dropped what did, or the log is damaged."""
    at: int | None = target
    while at is not None:
        if pruned(at) or pruned.snapshot(at):
            return Pruned(
                f"the state after event {target} was pruned: gc dropped what no retained version "
                "needed",
                seq=target,
            )
        at = lineage.parent(at)
    return CorruptLedger(f"no snapshot leads to the state after event {target}", seq=target)


def _between(
    lineage: Lineage,
    start: int,
    target: int,
    cost: int,
    limit: int | None,
    pruned: Prunings,
) -> Path | None:
    """The path through the common ancestor; None where it is barred or costs `limit` or more."""
    undo: list[int] = []
    redo: list[int] = []
    up: int | None = start
    down: int | None = target
    while up != down:
        if limit is not None and cost >= limit:
            return None
        # The larger seq cannot be an ancestor of the smaller one, so it is the one to leave.
        if down is None or (up is not None and up > down):
            assert up is not None
            if lineage.forward_only(up) or pruned(up):
                return None
            undo.append(up)
            cost += lineage.size(up)
            up = lineage.parent(up)
        else:
            if pruned(down):
                return None
            redo.append(down)
            cost += lineage.size(down)
            down = lineage.parent(down)
    if limit is not None and cost >= limit:
        return None
    return Path(start, tuple(undo), tuple(reversed(redo)), cost)
