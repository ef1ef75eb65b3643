"""The hash tree as a store keeps it: the same as over all events at once, for any length of log."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from weightledger.ledger.audit import chain, tree
from weightledger.ledger.audit.tree import EventTree
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import merkle
from weightledger.ledger.sql.layout import SEQ_BITS
from weightledger.ledger.store import TILE, tree_rows
from weightledger.ledger.store.sql_store import SqlStore

LEAVES = [sha256(b"\0%d" % number).digest() for number in range(TILE * TILE + 700)]


def plainly(hashes: list[bytes]) -> bytes:
    def perfect(level: int, number: int) -> bytes:
        return merkle.fold(hashes[number << level : (number + 1) << level])

    return merkle.root(len(hashes), perfect)


class Rows:
    """What `tree_rows` asks of a database, over leaves in a list: no million events to write."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[int, int], bytes] = {}

    def execute(self, sql: str, values: Any = (), /) -> Any:
        if sql.startswith("INSERT"):
            _, level, number, hash_ = values
            self.nodes[level, number] = hash_
            return None
        if "event_hash" in sql:
            first, last = (key & ((1 << SEQ_BITS) - 1) for key in values)
            return Fetched([(leaf,) for leaf in LEAVES[first : last + 1]])
        _, level, first, last = values
        numbers = [number for number in range(first, last + 1) if (level, number) in self.nodes]
        return Fetched([(number, self.nodes[level, number]) for number in numbers])


class Fetched:
    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = rows

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self._rows


class Grown:
    """A store whose log has as many events as there are leaves."""

    def __init__(self) -> None:
        self._rows = Rows()
        for seq in range(len(LEAVES)):
            tree_rows.grow(self._rows.execute, 1, seq)

    def tree_hashes(self, level: int, start: int, stop: int) -> list[bytes]:
        return tree_rows.hashes(self._rows.execute, 1, level, start, stop)


@pytest.fixture(scope="module")
def grown() -> Grown:
    return Grown()


SIZES = [1, 2, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 65_792, len(LEAVES)]


@pytest.mark.parametrize("size", SIZES)
def test_roots_and_proofs_over_stored_nodes_hold(grown: Any, size: int) -> None:
    root = plainly(LEAVES[:size])
    kept = EventTree(grown)
    assert kept.root(size) == root
    for seq in {0, size // 3, size // 2, size - 1}:
        merkle.check_inclusion(LEAVES[seq], seq, size, kept.inclusion_proof(seq, size), root)
    for first in {1, size // 3, size // 2 + 1, size - 1} - {0}:
        proof = kept.consistency_proof(first, size)
        merkle.check_consistency(first, size, proof, plainly(LEAVES[:first]), root)


def test_a_log_grows_its_tree(store: SqlStore, new_writer: Callable[..., Any]) -> None:
    writer = new_writer(store)
    events = [writer.append() for _ in range(2 * TILE + 3)]
    hashes = [event.hash for event in store.model(writer.model).scan()]
    assert len(hashes) >= len(events)
    kept = EventTree(store.model(writer.model))
    assert len(store.model(writer.model).tree_hashes(8, 0, 9)) == len(hashes) // TILE
    for size in (1, TILE - 1, TILE, TILE + 1, len(hashes)):
        assert kept.root(size) == plainly(hashes[:size])


@pytest.mark.parametrize("harm", ["altered", "missing", "too many", "moved"])
def test_verify_notices_nodes_that_are_not_what_the_events_come_to(
    store: SqlStore, new_writer: Callable[..., Any], plain: Any, database_url: str, harm: str
) -> None:
    writer = new_writer(store)
    while (writer.append()).seq < TILE + 3:
        pass
    events = store.model(writer.model)
    tiles = chain.check(events, 0, TILE + 4)
    assert tiles == tree.tiles_of(events, TILE + 4)
    assert tree.check(events, TILE + 4, tiles) == EventTree(events).root(TILE + 4)
    connection = plain(database_url)
    connection.execute(
        {
            "altered": "UPDATE tree_nodes SET hash = (SELECT max(event_hash) FROM events)",
            "missing": "DELETE FROM tree_nodes",
            "moved": "UPDATE tree_nodes SET number = 7",
            "too many": "INSERT INTO tree_nodes SELECT model_id, level, 1, hash FROM tree_nodes",
        }[harm]
    )
    connection.commit()
    with pytest.raises(CorruptLedger, match="hash tree"):
        tree.check(events, TILE + 4, tiles)
