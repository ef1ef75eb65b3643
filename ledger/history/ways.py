"""Ways to the state at a node: where to start from, and how to go round what is damaged.

The only place that chooses among snapshots and the state at hand; `history.lineage` finds the
cheapest path, and whatever is read along it is checked against its digest.
"""

import logging
from collections.abc import Callable, Collection
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar

from weightledger.ledger.errors import CorruptLedger, DamagedSnapshot, Pruned
from weightledger.ledger.history import lineage, snapshots
from weightledger.ledger.history.pruning import barring
from weightledger.ledger.store.attached import Snapshot
from weightledger.ledger.tensors.state import StateDigest

if TYPE_CHECKING:
    from weightledger.ledger.history.reader import History

logger = logging.getLogger(__name__)

_node = attrgetter("node")

T = TypeVar("T")


class Ways:
    """The ways through one model's log."""

    def __init__(self, history: "History") -> None:
        self._history = history

    def travel(
        self,
        node: int,
        along: Callable[[StateDigest, lineage.Path], T],
        *,
        live: tuple[int, StateDigest] | None = None,
        without: Collection[int] = (),
    ) -> T:
        """What `along` makes of the cheapest way to a node, or of the next one if that is damaged.

        `along(base, path)` gets the state to start from and the path from there; it raises
        CorruptLedger for what does not verify. A snapshot that turns out damaged, and an event
        whose payload is, are left out and the way is planned anew: every state is checked against
        its digest, whichever way led to it. `live` is a node where one can begin for nothing, with
        its state. Raises Pruned when gc dropped what the way needs, and the first CorruptLedger
        when no other way is left.
        """
        anchors_out, events_out = set(without), set[int]()
        first: CorruptLedger | None = None
        while True:
            try:
                start, path = self._plan(node, live, anchors_out, events_out)
            except (CorruptLedger, Pruned) as error:
                raise first or error from None
            try:
                if isinstance(start, Snapshot):
                    return along(self.anchor_state(start), path)
                return along(start, path)
            except DamagedSnapshot as error:
                anchors_out.add(error.node)
                damage: CorruptLedger = error
            except CorruptLedger as error:
                if error.seq not in (*path.undo, *path.redo):
                    raise
                events_out.add(error.seq)
                damage = error
            logger.error(
                "%s: %s. Looking for a way round it; `weightledger verify` tells more",
                self._history.model,
                damage,
            )
            first = first or damage

    def restorable(self, node: int) -> bool:
        """Whether gc has left what the way to a node needs."""
        try:
            self._plan(node, None, (), ())
        except Pruned:
            return False
        return True

    def _plan(
        self,
        node: int,
        live: tuple[int, StateDigest] | None,
        anchors_out: Collection[int],
        events_out: Collection[int],
    ) -> tuple[Snapshot | StateDigest, lineage.Path]:
        """Where to start from for a node, and the path from there."""
        pruned = barring(self._history.pruned, events_out) if events_out else self._history.pruned
        anchors = self._near(node, anchors_out)
        if live is not None and anchors:
            # Where the state at hand is nearer than a snapshot is large, the way up the tree is not
            # followed to its anchor, which over a long log takes longer than the path itself.
            least = min(anchor.size for anchor in anchors.values())
            direct = lineage.within(self._history.lineage, live[0], node, least, pruned)
            if direct is not None:
                return live[1], direct
        above = self.anchor_above(node, anchors_out)
        if above is not None:
            anchors[above.node] = above
        costs = {at: max(anchor.size, 1) for at, anchor in anchors.items()}
        if live is not None:
            costs[live[0]] = 0
        path = lineage.cheapest(self._history.lineage, costs, node, pruned)
        if live is not None and path.start == live[0]:
            return live[1], path
        return anchors[path.start], path

    def _near(self, node: int, without: Collection[int]) -> dict[int, Snapshot]:
        """The nearest snapshots on each side of a node in the log, however many there are; those at
        the nodes `without` are left out."""
        near = self._history.store.snapshots_near(node, lineage.NEAREST_ANCHORS + len(without))
        return {snapshot.node: snapshot for snapshot in near if snapshot.node not in without}

    def anchor_above(self, node: int, without: Collection[int] = ()) -> Snapshot | None:
        """The snapshot at a node or at its nearest ancestor that has one, if nothing on the way
        there was pruned; those at the nodes `without` are passed by."""
        store, pruned = self._history.store, self._history.pruned
        near = store.snapshots_near(node, lineage.NEAREST_ANCHORS)
        last = max((one for one in near if one.node <= node), key=_node, default=None)
        if (
            last is not None
            and last.node not in without
            and not pruned.any_between(last.node, node)
            and self._history.lineage.straight(last.node, node) is not None
        ):
            return last  # as nearly always; asking of each node takes long
        read: dict[int, Snapshot] = {}
        lowest: int | None = None  # the last node for which those before it have been read

        def anchored(at: int) -> bool:
            nonlocal lowest
            if lowest is None or at < lowest:
                near = store.snapshots_near(at, lineage.NEAREST_ANCHORS)
                read.update((snapshot.node, snapshot) for snapshot in near)
                lowest = min((s.node for s in near if s.node <= at), default=0)
            return at in read and at not in without

        above = lineage.ancestor(self._history.lineage, anchored, 0, node, pruned)
        return None if above is None else read[above]

    def anchor_state(self, snapshot: Snapshot) -> StateDigest:
        """The state a snapshot holds, checked against the event it is a snapshot of."""
        try:
            state = snapshots.read_manifest(self._history.blobs.get(snapshot.manifest))
        except CorruptLedger as error:
            raise DamagedSnapshot(
                f"snapshot at event {snapshot.node}: {error}", seq=snapshot.node
            ) from error
        event = self._history.require(snapshot.node)
        if state.value != event.state_after:
            raise DamagedSnapshot(
                f"the snapshot at event {snapshot.node} has digest {state.value.hex()}, "
                f"the log says {event.state_after.hex()}",
                seq=snapshot.node,
            )
        return state
