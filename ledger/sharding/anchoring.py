"""Snapshots that ranks write together, so that restoring does not grow with the history.

As `projection.anchoring` has it for one process: one is due when the way from the last has grown to
α times the model. Tensors that are stored already are shared; the others are put together on the
first rank, one at a time.
"""

import logging
from collections.abc import Mapping

import numpy as np

from weightledger.ledger.errors import LedgerError, StorageUnavailable
from weightledger.ledger.history import snapshots
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.anchoring import MIN_SPACING_BYTES, way_to_anchor
from weightledger.ledger.sharding.chunks import ChunkLayout
from weightledger.ledger.sharding.encoding import RankChunks
from weightledger.ledger.sharding.ranks import Ranks
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.state import StateDigest

logger = logging.getLogger(__name__)


def is_due(history: History, node: int, state: StateDigest, alpha: float) -> bool:
    """Whether the way to a node from the nearest snapshot has grown long. False, and a line of the
    log, where that cannot be found out: the event is in the log, and the next one asks again."""
    model_bytes = sum(spec.nbytes for spec in state.specs.values())
    try:
        return way_to_anchor(history, node) >= max(alpha * model_bytes, MIN_SPACING_BYTES)
    except LedgerError as error:
        logger.warning("no snapshot after event %d, will try again: %s", node, error)
        return False


def snapshot(
    history: History,
    ranks: Ranks,
    layout: ChunkLayout,
    node: int,
    state: StateDigest,
    held: Mapping[str, RankChunks],
) -> None:
    """Write a snapshot at a node whose state every rank holds its share of; all ranks together.

    What fails is a line of the log: the event stands. RankLost when a rank is gone.
    """
    missing: list[str] = []
    error: LedgerError | None = None
    blobs = history.blobs
    if ranks.rank == 0:
        try:
            absent = blobs.missing([state.digests[name] for name in held])
            missing = [name for name in held if state.digests[name] in absent]
        except LedgerError as failed:
            error = failed
    for name in ranks.tell_all(missing)[0]:
        whole = layout.whole(state.specs[name], held[name].values)
        if whole is not None and error is None:
            try:
                blobs.put(state.digests[name], lanes(whole).view(np.uint8))
            except LedgerError as failed:
                error = failed
    if ranks.rank == 0 and error is None:
        try:
            anchor, manifest = snapshots.describe(node, state)
            blobs.put(anchor.manifest, manifest)
            lacking = history.store.add_snapshot(anchor, {anchor.manifest, *state.digests.values()})
            if lacking:  # a collector came between; the next event tries again
                error = StorageUnavailable(f"blob {min(lacking).hex()} is deleted meanwhile")
        except LedgerError as failed:
            error = failed
    if error is not None:
        logger.warning("no snapshot after event %d, will try again: %s", node, error)
