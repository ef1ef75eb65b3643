"""The state changes that may be to blame: the path from a good state to a bad one.

States form a tree, and the way from one to another undoes events up to the common ancestor and
redoes others down from there. States on the way are numbered: 0 is the good one, the last one is
bad, and step k leads from state k - 1 to state k.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.errors import InvalidRequest, NotFound, Pruned
from weightledger.ledger.history.positions import Position
from weightledger.ledger.history.reader import History


@dataclass(frozen=True, slots=True)
class SearchStep:
    """What leads from one state on the way to the next: an event that is redone, or taken back."""

    seq: int
    undone: bool


class Candidates:
    """The states from a good one to a bad one, and the steps between them."""

    def __init__(self, good: int, undone: Sequence[int], redone: Sequence[int], top: int) -> None:
        """`undone` and `redone` are seqs in the order of the way, `top` is the common ancestor."""
        states = [good, *undone[1:], top, *redone] if undone else [good, *redone]
        self._states: NDArray[np.int64] = np.array(states, np.int64)
        self._undone = len(undone)
        self._undone_seqs = tuple(undone)
        self._places = {int(node): place for place, node in enumerate(states)}

    def __len__(self) -> int:
        """How many steps there are, at least one."""
        return len(self._states) - 1

    def node(self, place: int) -> int:
        """The seq that names a state on the way."""
        return int(self._states[place])

    def place(self, node: int) -> int:
        """The number of a state on the way; NotFound for one beside it."""
        place = self._places.get(node)
        if place is None:
            raise NotFound(
                f"the state after event {node} is not on the way from seq:{self.node(0)} to "
                f"seq:{self.node(len(self))}, which is what is being searched"
            )
        return place

    def step(self, place: int) -> SearchStep:
        """The step that leads to a state, 1 to the last."""
        if place <= self._undone:
            return SearchStep(self._undone_seqs[place - 1], undone=True)
        return SearchStep(self.node(place), undone=False)


def candidates(history: History, good: Position, bad: Position) -> Candidates:
    """The way from `good` to `bad`.

    Raises InvalidRequest where both are one state or the good one came of the bad one, Pruned
    where gc dropped what either of them needs.
    """
    if good.node == bad.node:
        raise InvalidRequest(
            f"{good.text} and {bad.text} are one state, seq:{good.node}: it cannot be good and bad",
            param="good",
        )
    undone: list[int] = []
    redone: list[int] = []
    up: int | None = good.node
    down: int | None = bad.node
    lineage = history.lineage
    while up != down:
        # The larger seq cannot be an ancestor of the smaller one, so it is the one to leave.
        if down is None or (up is not None and up > down):
            assert up is not None
            undone.append(up)
            up = lineage.parent(up)
        else:
            redone.append(down)
            down = lineage.parent(down)
    assert up is not None
    if not redone:
        raise InvalidRequest(
            f"the good state, {good.text}, came after the bad one, {bad.text}: whatever is wrong "
            "with the bad one was put right since. Name a good state that is older, or the other "
            "way round to find what mended it",
            param="good",
        )
    for end in (good, bad):
        if not history.ways.restorable(end.node):
            raise Pruned(f"the state at {end.text} was pruned by gc", seq=end.node)
    return Candidates(good.node, undone, redone[::-1], up)
