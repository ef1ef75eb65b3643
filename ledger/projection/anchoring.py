"""When the live state is written out as a snapshot: as soon as the way to it has grown long.

Each update adds its payload and the cost of reading one event to the way from the nearest snapshot;
at α times the model's bytes the next snapshot is due, so restoring reads at most (1 + α) models.
"""

from weightledger.ledger import events
from weightledger.ledger.errors import StorageUnavailable
from weightledger.ledger.events import Event
from weightledger.ledger.history import snapshots
from weightledger.ledger.history.lineage import EVENT_COST
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.snapshot_tensors import store_tensors
from weightledger.ledger.projection.projector import Projector

# A tiny model would otherwise be snapshotted every few updates, to save reading next to nothing.
MIN_SPACING_BYTES = 1 << 20

_TRIES = 5

# Events of other processes, since the last one here, whose sizes are added up one by one.
_NEAR = 64


class Anchoring:
    """Keeps the anchors of one log close enough; used by one writer at a time."""

    def __init__(self, history: History, projector: Projector, alpha: float) -> None:
        self._history = history
        self._projector = projector
        model_bytes = sum(spec.nbytes for spec in projector.specs.values())
        self._spacing = max(alpha * model_bytes, MIN_SPACING_BYTES)
        self._node = projector.live.head.node
        self._distance = self._measured(self._node)
        self._mine = self._distance >= self._spacing  # to write the one that is due

    def after(self, event: Event) -> None:
        """Write a snapshot if one is due once `event` is shown.

        Of several processes the one whose event made it due writes it, and tries again if it fails;
        so does any other that finds it still due with the next event of its own. All at once would
        write one each, in the way of each other's events.
        """
        if event.kind not in events.STATE_CHANGING:
            return
        self._history.learn(event)
        forward = event.node == event.seq
        own = event.payload_size + EVENT_COST
        if forward and event.parent == self._node:
            self._distance += own
        else:
            further = self._further(event.node)
            if further is None:
                self._distance = self._measured(event.node)
            else:
                self._distance += further
        self._node = event.node
        if self._distance < self._spacing or event.node != self._projector.live.head.node:
            return
        # Other processes write snapshots too, which is looked for only now.
        self._distance = self._measured(event.node)
        if self._distance < self._spacing:
            self._mine = False
            return
        left = forward and self._distance - own >= self._spacing and not self._mine
        self._mine = True
        if not left:
            self.snapshot()

    def snapshot(self) -> None:
        """Write an anchor at the live state, unless there is one; unchanged tensors are shared."""
        live = self._projector.live
        store, node = self._history.store, live.head.node
        if all(anchor.node != node for anchor in store.snapshots_near(node, 1)):
            anchor, _ = snapshots.describe(live.head.node, live.state)
            needed = {anchor.manifest, *live.state.digests.values()}
            for _ in range(_TRIES):  # a collector that came between takes what nothing refers to
                store_tensors(self._history.blobs, live.state, self._projector.tensor)
                missing = store.add_snapshot(anchor, needed)
                if not missing:
                    break
            else:
                raise StorageUnavailable(
                    f"blob {min(missing).hex()} of a snapshot is deleted over and over"
                )
        self._node, self._distance, self._mine = live.head.node, 0, False

    def _further(self, node: int) -> int | None:
        """Bytes read between a node and the last one here; None unless that is a near ancestor."""
        lineage = self._history.lineage
        size = 0
        at: int | None = node
        for _ in range(_NEAR):
            if at is None or at <= self._node:
                break
            size += lineage.size(at)
            at = lineage.parent(at)
        return size if at == self._node else None

    def _measured(self, node: int) -> int:
        return way_to_anchor(self._history, node)


def way_to_anchor(history: History, node: int) -> int:
    """Bytes read between a node and its nearest anchored ancestor."""
    above = history.ways.anchor_above(node)
    size = 0
    at: int | None = node
    while at is not None and (above is None or at != above.node):
        size += history.lineage.size(at)
        at = history.lineage.parent(at)
    return size
