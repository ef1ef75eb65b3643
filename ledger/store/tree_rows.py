"""The tree's stored nodes: the roots of perfect subtrees of 256 events, of 256 of those, and so on.

They are written in the transaction of the event that completes them, so an append pays for the tree
once in 256 events, and whoever asks for a root or a proof reads a few hundred hashes at most. Nodes
in between are computed from them, or from the events' own hashes, by `audit.tree`.
"""

from collections.abc import Iterator

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events.merkle import fold
from weightledger.ledger.sql.backend import Execute
from weightledger.ledger.store import TILE, TILE_LEVELS
from weightledger.ledger.store.rows import key_of

_LEAVES = "SELECT event_hash FROM events WHERE event_key BETWEEN ? AND ? ORDER BY event_key"
_NODES = (
    "SELECT number, hash FROM tree_nodes WHERE model_id = ? AND level = ?"
    " AND number BETWEEN ? AND ? ORDER BY number"
)
_ALL = "SELECT level, number, hash FROM tree_nodes WHERE model_id = ?"
_ADD = "INSERT INTO tree_nodes (model_id, level, number, hash) VALUES (?, ?, ?, ?)"


def grows(seq: int) -> bool:
    """Whether the event of a seq completes a node that is stored."""
    return (seq + 1) % TILE == 0


def grow(execute: Execute, model_id: int, seq: int) -> None:
    """Write the nodes that the event just inserted completes; nothing for most."""
    count, level = seq + 1, 0
    while count % TILE == 0:
        count //= TILE
        below = hashes(execute, model_id, level, (count - 1) * TILE, count * TILE)
        level += TILE_LEVELS
        execute(_ADD, (model_id, level, count - 1, fold(below)))


def hashes(execute: Execute, model_id: int, level: int, start: int, stop: int) -> list[bytes]:
    """The nodes of a stored level with start <= number < stop, in order; level 0 are the events.

    The last ones may not be there yet; CorruptLedger when one before another is not.
    """
    if level == 0:
        leaves = execute(_LEAVES, (key_of(model_id, start), key_of(model_id, stop - 1)))
        return [bytes(one) for (one,) in leaves.fetchall()]
    nodes = execute(_NODES, (model_id, level, start, stop - 1)).fetchall()
    for number, (stored_number, _) in enumerate(nodes, start):
        if stored_number != number:
            raise CorruptLedger(
                f"node {number} of level {level} of the hash tree is missing:"
                " `weightledger repair` derives it anew"
            )
    return [bytes(one) for _, one in nodes]


def stored(execute: Execute, model_id: int) -> Iterator[tuple[int, int, bytes]]:
    """Every stored node: its level, its number and its hash."""
    for level, number, node in execute(_ALL, (model_id,)).fetchall():
        yield level, number, bytes(node)


def grown(execute: Execute, model_id: int, count: int) -> Iterator[tuple[int, int, bytes]]:
    """Every node that is stored once there are `count` events, from the events' hashes alone."""
    level, below = 0, list[bytes]()
    while count >= TILE:
        nodes = []
        for start in range(0, count // TILE * TILE, TILE):
            leaves = level == 0
            tile = (
                hashes(execute, model_id, 0, start, start + TILE)
                if leaves
                else below[start : start + TILE]
            )
            nodes.append(fold(tile))
        level, below, count = level + TILE_LEVELS, nodes, len(nodes)
        for number, node in enumerate(nodes):
            yield level, number, node


def rewrite(execute: Execute, model_id: int, count: int) -> None:
    """Write the tree of `count` events anew."""
    execute("DELETE FROM tree_nodes WHERE model_id = ?", (model_id,))
    for level, number, node in grown(execute, model_id, count):
        execute(_ADD, (model_id, level, number, node))
