"""The nearest named ancestor against walking up state by state, over random trees."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from weightledger.ledger.events import ROLLED_BACK
from weightledger.ledger.history.versions import nearest, updates_since_active
from weightledger.ledger.store import EventFilter, Listed


class Tree:
    """A log of state changes, some of them rollbacks, with names for some states."""

    def __init__(self, turns: list[tuple[bool, int]], named: list[int]) -> None:
        self.parents: dict[int, int | None] = {0: None}
        self.rollbacks: list[Any] = []
        at = 0
        for seq, (back, choice) in enumerate(turns, 1):
            nodes = list(self.parents)
            if back:
                at = nodes[choice % len(nodes)]
                self.rollbacks.append(SimpleNamespace(seq=seq, node=at))
            else:
                self.parents[seq] = at
                at = seq
        self.at = at
        nodes = list(self.parents)
        self.listed = [
            Listed(number, 0, nodes[choice % len(nodes)], False)
            for number, choice in enumerate(named)
        ]

    def listed_before(self, node: int) -> Listed | None:
        earlier = [one for one in self.listed if one.node <= node]
        return max(earlier, key=lambda one: (one.node, one.number), default=None)

    def select(self, where: EventFilter, *, limit: int) -> list[Any]:
        assert where.kinds == [ROLLED_BACK] and where.max_seq is not None
        least = where.min_seq or 0
        return [r for r in reversed(self.rollbacks) if least <= r.seq <= where.max_seq][:limit]

    def head(self) -> Any:
        return SimpleNamespace(node=self.at, active=self.walked(self.at))

    def listed_version(self, number: int) -> Listed:
        return next(one for one in self.listed if one.number == number)

    def event(self, seq: int) -> Any:
        """Every state change but the first is an update."""
        applied = sum(node <= seq for node in self.parents if node)
        return SimpleNamespace(counts=SimpleNamespace(applied=applied))

    def updates_since(self, node: int) -> int:
        steps, at = 0, self.at
        while at != node:
            steps, at = steps + 1, self.parents[at] or 0
        return steps

    def walked(self, node: int | None) -> int | None:
        while node is not None:
            found = [one.number for one in self.listed if one.node == node]
            if found:
                return max(found)
            node = self.parents[node]
        return None


TURNS = st.lists(st.tuples(st.booleans(), st.integers(0, 99)), max_size=40)
NAMED = st.lists(st.integers(0, 99), max_size=6)


@given(TURNS, NAMED)
def test_the_nearest_named_ancestor_is_found(
    turns: list[tuple[bool, int]], named: list[int]
) -> None:
    tree = Tree(turns, named)
    for node in tree.parents:
        assert nearest(tree, node) == tree.walked(node)  # type: ignore[arg-type]


@given(TURNS, NAMED)
def test_updates_since_the_active_version_are_counted_along_the_tree(
    turns: list[tuple[bool, int]], named: list[int]
) -> None:
    tree = Tree(turns, named)
    active = tree.walked(tree.at)
    expected = None if active is None else tree.updates_since(tree.listed_version(active).node)
    assert updates_since_active(tree) == expected  # type: ignore[arg-type]
