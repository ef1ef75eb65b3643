"""Snapshots that do not verify: which they are, and writing them anew from the rest of the log."""

import numpy as np

from weightledger.ledger.blobs import Buffer
from weightledger.ledger.errors import CorruptLedger, NotFound
from weightledger.ledger.history import snapshots
from weightledger.ledger.history.reader import History
from weightledger.ledger.tensors.lanes import lanes


def damaged_snapshots(history: History) -> dict[int, str]:
    """The nodes of snapshots that cannot be restored from, each with what is wrong first."""
    damaged: dict[int, str] = {}
    for snapshot in history.store.snapshots():
        try:
            state = history.ways.anchor_state(snapshot)
            for name in state.specs:
                history.anchored(snapshot.node, state, name)
        except CorruptLedger as error:
            damaged[snapshot.node] = str(error)
    return damaged


def rewrite_snapshot(history: History, node: int) -> int:
    """Write what is damaged or missing of the snapshot at a node; gives how many blobs that were.

    The state is rebuilt without that snapshot and checked against the log's digest. NotFound when
    there is no such snapshot, CorruptLedger (or Pruned) when nothing else leads to its state.
    """
    snapshot = next((one for one in history.store.snapshots() if one.node == node), None)
    if snapshot is None:
        raise NotFound(f"there is no snapshot at event {node}")
    expected = history.require(node).state_after
    state, tensors = history.rebuild(node, expected, without=(node,))
    anew, manifest = snapshots.describe(node, state)
    if anew.manifest != snapshot.manifest:
        raise CorruptLedger(
            f"the row of the snapshot at event {node} names another manifest than its state has",
            seq=node,
        )
    written = int(_rewritten(history, anew.manifest, manifest))
    for name, tensor in tensors.items():
        bits = lanes(tensor, name).view(np.uint8)
        written += _rewritten(history, state.digests[name], bits)
    return written


def _rewritten(history: History, digest: bytes, data: Buffer) -> bool:
    """Whether a blob had to be written anew."""
    try:
        history.blobs.get(digest)
    except CorruptLedger:
        history.blobs.rewrite(digest, data)
        return True
    return False
