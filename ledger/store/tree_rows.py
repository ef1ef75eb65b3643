"""The tree's stored nodes: the roots of perfect subtrees of 256 events, of 256 of those, and so on.

They are written in the transaction of the event that completes them, so an append pays for the tree
once in 256 events, and whoever asks for a root or a proof reads a few hundred hashes at most. Nodes
in between are computed from them, or from the events' own hashes, by `audit.tree`.
"""

from weightledger.ledger.events.merkle import fold
from weightledger.ledger.sql.backend import Execute
from weightledger.ledger.store import TILE, TILE_LEVELS
from weightledger.ledger.store.rows import key_of

_LEAVES = "SELECT event_hash FROM events WHERE event_key BETWEEN ? AND ? ORDER BY event_key"
_NODES = (
    "SELECT hash FROM tree_nodes WHERE model_id = ? AND level = ? AND number BETWEEN ? AND ?"
    " ORDER BY number"
)
_ADD = "INSERT INTO tree_nodes (model_id, level, number, hash) VALUES (?, ?, ?, ?)"


def grow(execute: Execute, model_id: int, seq: int) -> None:
    """Write the nodes that the event just inserted completes; nothing for most."""
    count, level = seq + 1, 0
    while count % TILE == 0:
        count //= TILE
        below = hashes(execute, model_id, level, (count - 1) * TILE, count * TILE)
        level += TILE_LEVELS
        execute(_ADD, (model_id, level, count - 1, fold(below)))


def hashes(execute: Execute, model_id: int, level: int, start: int, stop: int) -> list[bytes]:
    """The nodes of a stored level with start <= number < stop, in order; level 0 are the events."""
    if level == 0:
        rows = execute(_LEAVES, (key_of(model_id, start), key_of(model_id, stop - 1)))
    else:
        rows = execute(_NODES, (model_id, level, start, stop - 1))
    return [bytes(one) for (one,) in rows.fetchall()]
