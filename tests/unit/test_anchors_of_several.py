"""Of several processes that write one model, one writes each snapshot that is due."""

import itertools
from collections.abc import Iterator

import pytest
import torch

from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.history.lineage import EVENT_COST
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection import anchoring
from weightledger.ledger.projection.anchoring import way_to_anchor

SPACING = 8 * EVENT_COST
WRITERS = 3


@pytest.fixture
def logs(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Log]]:
    """As of processes of their own, as far as the database can tell."""
    monkeypatch.setattr(anchoring, "MIN_SPACING_BYTES", SPACING)
    ledgers = [Ledger.open(database_url) for _ in range(WRITERS)]
    yield [ledger.model("m", base={"w": torch.zeros(4)}) for ledger in ledgers]
    for ledger in ledgers:
        ledger.close()


def write(log: Log) -> int:
    return log.apply(IncrementalUpdateRequest("w", 1.0, learning_rate=1.0)).seq


def nodes(log: Log) -> list[int]:
    return sorted(snapshot.node for snapshot in log.history.store.snapshots())


def test_each_is_written_once_by_whose_event_made_it_due(
    logs: list[Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is there only once the others have written, as when it takes a while."""
    wrote: list[tuple[int, int]] = []

    def write_late(writer: int, write_now: object) -> None:
        wrote.append((writer, logs[writer].live.head.seq))
        pending.append(write_now)

    pending: list[object] = []
    for number, log in enumerate(logs):
        anchors = log._anchoring
        now = anchors.snapshot
        monkeypatch.setattr(
            anchors, "snapshot", lambda number=number, now=now: write_late(number, now)
        )
    for _ in range(20):
        for log in logs:
            write(log)
        for write_now in pending:
            write_now()  # type: ignore[operator]
        pending.clear()
    steps = [later[1] - one[1] for one, later in itertools.pairwise(wrote)]
    assert len(wrote) == len(nodes(logs[0])) - 1 >= 6
    assert min(steps) >= SPACING // EVENT_COST - WRITERS, "one each time, not one each"


def test_one_that_its_writer_left_out_is_written_by_the_next(
    logs: list[Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed before it could."""
    dies, *others = logs
    monkeypatch.setattr(dies._anchoring, "snapshot", lambda: None)
    while way_to_anchor(dies.history, dies.live.head.node) < SPACING:
        last = write(dies)
    for _ in range(2):
        assert nodes(dies) == [0]
        for log in others:
            write(log)
    assert nodes(dies)[1:] and nodes(dies)[1] <= last + 2 * len(others)


def test_rollbacks_do_not_put_off_what_a_writer_left_out(
    logs: list[Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each the way to the anchor is another, and is looked for."""
    dies, lives, _ = logs
    monkeypatch.setattr(dies._anchoring, "snapshot", lambda: None)
    while way_to_anchor(dies.history, dies.live.head.node) < SPACING:
        write(dies)
    for _ in range(12):
        write(lives)
        back = write(lives)
        lives.rollback(f"event_{back - 1}")
    assert nodes(lives)[1:], "it was written by the other"
    assert way_to_anchor(lives.history, lives.live.head.node) < 2 * SPACING


def test_who_hears_of_a_snapshot_asks_nobody(
    logs: list[Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def asking(history: History, node: int) -> int:
        asked.append(node)
        return way_to_anchor(history, node)

    writes, hears, _ = logs
    write(hears)
    while len(nodes(writes)) == 1:
        write(writes)
    hears.catch_up()
    hears.projector.way.hear_of_anchor(nodes(writes)[1])
    monkeypatch.setattr(anchoring, "way_to_anchor", asking)
    write(hears)
    assert asked == []
    live = hears.live.head.node
    assert hears._anchoring._distance() == way_to_anchor(hears.history, live) < SPACING
    assert len(nodes(writes)) == 2
