"""The nearest named ancestor against walking up state by state, over random trees."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from weightledger.ledger.events import ROLLED_BACK
from weightledger.ledger.history.versions import nearest
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
        return [r for r in reversed(self.rollbacks) if r.seq <= where.max_seq][:limit]

    def walked(self, node: int | None) -> int | None:
        while node is not None:
            found = [one.number for one in self.listed if one.node == node]
            if found:
                return max(found)
            node = self.parents[node]
        return None


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 99)), max_size=40),
    st.lists(st.integers(0, 99), max_size=6),
)
def test_the_nearest_named_ancestor_is_found(
    turns: list[tuple[bool, int]], named: list[int]
) -> None:
    tree = Tree(turns, named)
    for node in tree.parents:
        assert nearest(tree, node) == tree.walked(node)  # type: ignore[arg-type]
