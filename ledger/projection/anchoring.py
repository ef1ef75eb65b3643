"""When the live state is written out as a snapshot: as soon as the way to it has grown long.

Each update adds its payload and the cost of reading one event to the way from the nearest snapshot;
at α times the model's bytes the next snapshot is due, so restoring reads at most (1 + α) models.
"""

from weightledger.ledger import events
from weightledger.ledger.errors import StorageUnavailable
from weightledger.ledger.events import Event
from weightledger.ledger.history import snapshots
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.snapshot_tensors import store_tensors
from weightledger.ledger.projection.projector import Projector

# A tiny model would otherwise be snapshotted every few updates, to save reading next to nothing.
MIN_SPACING_BYTES = 1 << 20

_TRIES = 5

# Of what makes one due. So far the way may grow beyond that before another process than the one
# whose event made it due does what that was to do.
_GRACE = 4


class Anchoring:
    """Keeps the anchors of one log close enough; used by one writer at a time."""

    def __init__(self, history: History, projector: Projector, alpha: float) -> None:
        self._history = history
        self._projector = projector
        model_bytes = sum(spec.nbytes for spec in projector.specs.values())
        self._spacing = max(alpha * model_bytes, MIN_SPACING_BYTES)
        self._anchor = projector.way.anchor  # the last that was told of
        self._noticed: int | None = None  # how long the way was when another's was seen to be due
        self._measure()
        self._mine = self._distance() >= self._spacing  # to write the one that is due

    def after(self, event: Event, *, ours: bool) -> None:
        """Write a snapshot if one is due once `event` is shown, which this process appended where
        it is `ours`.

        Of several processes the one that made it due writes it, and tries again if it fails; so
        does any other that finds it still due after a while. All at once would write one each, in
        the way of each other's events.
        """
        if event.kind not in events.STATE_CHANGING:
            return
        self._history.learn(event)
        distance = self._distance()
        if distance < self._spacing or self._is_near():
            self._noticed = None
            return
        went_elsewhere = event.node != event.seq
        before = distance - self._projector.way.step
        made_due = ours and (went_elsewhere or before < self._spacing)
        if not made_due and not self._mine:
            self._noticed = self._noticed or distance
            if distance - self._noticed < self._spacing / _GRACE:
                return
        # Other processes write snapshots too, which is looked for only now.
        self._measure()
        self._noticed = None
        self._mine = self._distance() >= self._spacing
        if self._mine:
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
        self._mine = False
        self._known(0)
        self._projector.way.hear_of_anchor(node)

    def _distance(self) -> int:
        """Bytes read between live weights and the nearest anchor."""
        way = self._projector.way
        if way.node != self._projector.live.head.node:
            self._measure()
        return self._so_far + way.size - self._from

    def _is_near(self) -> bool:
        """Whether a snapshot that a neighbour told of is near: then nobody need be asked."""
        way = self._projector.way
        if way.anchor <= self._anchor:
            return False
        self._anchor = way.anchor
        distance = self._history.lineage.straight(way.anchor, way.node)
        if distance is None or distance >= self._spacing:
            return False
        self._mine = False
        self._known(distance)
        return True

    def _measure(self) -> None:
        self._projector.way.begin(self._projector.live.head.node)
        self._known(way_to_anchor(self._history, self._projector.way.node))

    def _known(self, distance: int) -> None:
        self._so_far, self._from = distance, self._projector.way.size


def way_to_anchor(history: History, node: int) -> int:
    """Bytes read between a node and its nearest anchored ancestor."""
    above = history.ways.anchor_above(node)
    if above is not None:
        straight = history.lineage.straight(above.node, node)
        if straight is not None:
            return straight
    size = 0
    at: int | None = node
    while at is not None and (above is None or at != above.node):
        size += history.lineage.size(at)
        at = history.lineage.parent(at)
    return size
