"""The Merkle tree over a log, as its store keeps it: roots and proofs for any number of events.

Nothing here is trusted by whoever checks a proof; `audit.verify` recomputes the whole tree.
"""

from collections.abc import Sequence

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import merkle
from weightledger.ledger.store import TILE, TILE_LEVELS, EventStore


class EventTree:
    """The tree of one log; what it has read it keeps, so make one for a question or a few."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._tiles: dict[tuple[int, int], list[bytes]] = {}

    def root(self, size: int) -> bytes:
        """The root of the first `size` events, 32 bytes."""
        return merkle.root(size, self._perfect)

    def inclusion_proof(self, seq: int, size: int) -> list[bytes]:
        """What proves event `seq` to be among the first `size`; ProofError when it is not."""
        return merkle.inclusion_proof(seq, size, self._perfect)

    def consistency_proof(self, first: int, second: int) -> list[bytes]:
        """What proves the first `first` events to be the beginning of the first `second`."""
        return merkle.consistency_proof(first, second, self._perfect)

    def _perfect(self, level: int, number: int) -> bytes:
        """The root of the `number`-th perfect subtree of 2^level events."""
        stored = level // TILE_LEVELS * TILE_LEVELS
        width = 1 << (level - stored)
        start = number * width
        tile = self._tile(stored, start // TILE)
        hashes = tile[start % TILE : start % TILE + width]
        if len(hashes) != width:
            raise CorruptLedger(
                f"the hash tree lacks nodes of level {stored} from {start} on: run"
                " `weightledger verify`"
            )
        return merkle.fold(hashes)

    def _tile(self, level: int, number: int) -> list[bytes]:
        key = level, number
        if key not in self._tiles:
            start = number * TILE
            self._tiles[key] = self._store.tree_hashes(level, start, start + TILE)
        return self._tiles[key]


def tiles_of(store: EventStore, stop: int) -> list[bytes]:
    """The roots of the whole tiles before event `stop`, from the events' hashes alone."""
    return [
        merkle.fold(store.tree_hashes(0, start, start + TILE))
        for start in range(0, stop // TILE * TILE, TILE)
    ]


def check(store: EventStore, size: int, tiles: Sequence[bytes]) -> bytes:
    """The root over the first `size` events; CorruptLedger where the store's nodes are not what the
    events come to, whose tiles have the roots `tiles`."""
    level, nodes = TILE_LEVELS, list(tiles)
    while True:
        if store.tree_hashes(level, 0, len(nodes) + TILE) != nodes:
            raise CorruptLedger(_difference(store, level, nodes))
        if not nodes:
            return EventTree(store).root(size)
        whole = len(nodes) // TILE * TILE
        nodes = [merkle.fold(nodes[at : at + TILE]) for at in range(0, whole, TILE)]
        level += TILE_LEVELS


def _difference(store: EventStore, level: int, nodes: Sequence[bytes]) -> str:
    """Which stored node of a level is wrong, in words."""
    number = len(nodes)
    for number, node in enumerate(nodes):
        if store.tree_hashes(level, number, number + 1) != [node]:
            break
    return (
        f"node {number} of level {level} of the hash tree is not what the events come to:"
        " `weightledger repair` derives it anew"
    )
