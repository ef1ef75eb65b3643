"""What others wrote is followed straight on where they went straight on, else by a plan."""

from collections.abc import Iterator

import pytest
import torch

from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.errors import CorruptLedger, LedgerError, WeightsChangedOutside
from weightledger.ledger.history.ways import Ways
from weightledger.ledger.projection import following
from weightledger.ledger.sql.database import Database

SHAPES = {"w": (16, 16), "b": (3,)}


def add(name: str = "w", **more: object) -> IncrementalUpdateRequest:
    return IncrementalUpdateRequest(name, torch.randn(SHAPES[name]), 0.1, **more)


@pytest.fixture
def logs(sqlite_url: str) -> Iterator[tuple[Log, Log]]:
    """The log of one writer, and that of another who has written once."""
    with Ledger.open(sqlite_url) as ledger, Ledger.open(sqlite_url) as elsewhere:
        log = ledger.model("m", base={name: torch.randn(shape) for name, shape in SHAPES.items()})
        other = elsewhere.model("m")
        other.apply(add())
        log.catch_up()
        yield log, other


def same(log: Log, other: Log) -> bool:
    digests = {log.live.state.value, other.live.state.value, log.projector.hash_live().value}
    served = [one.projector.engine.tensor(name) for name in SHAPES for one in (log, other)]
    pairs = zip(served[::2], served[1::2], strict=True)
    return len(digests) == 1 and all(torch.equal(a, b) for a, b in pairs)


def planned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The nodes to which a way is planned from now on."""
    nodes: list[int] = []
    travel = Ways.travel

    def noting(self: Ways, node: int, *args: object, **more: object) -> object:
        nodes.append(node)
        return travel(self, node, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Ways, "travel", noting)
    return nodes


def test_a_straight_line_of_any_small_events_is_followed_without_a_plan(
    logs: tuple[Log, Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other = logs
    nodes = planned(monkeypatch)
    for name in ("w", "b", "w", "w"):
        other.apply(add(name))
    other.apply(IncrementalUpdateRequest("w", torch.randn(9), 0.1, indices=list(range(0, 36, 4))))
    other.apply_batch([add("b"), add("w")])
    other.create_version("named")
    other.apply(
        IncrementalUpdateRequest(
            "w", factors={"a": torch.randn(16, 1), "b": torch.randn(1, 16)}, learning_rate=0.1
        )
    )
    assert log.catch_up() == other.live.head
    assert same(log, other)
    other.create_version("named again")
    assert log.catch_up() == other.live.head
    assert nodes == []
    log.apply(add())
    other.apply(add())  # catches up by itself
    log.catch_up()
    assert same(log, other)
    assert nodes == []


def test_what_is_no_line_goes_by_a_plan(
    logs: tuple[Log, Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other = logs
    other.apply(add())
    other.rollback("seq:0")
    other.apply(add())
    nodes = planned(monkeypatch)
    assert log.catch_up() == other.live.head
    assert nodes == [other.live.head.node]
    assert same(log, other)
    monkeypatch.setattr(following, "MOST_NEWS", 4)
    for _ in range(5):
        other.apply(add())
    log.catch_up()
    assert nodes[1:] == [other.live.head.node]
    assert same(log, other)


def test_a_damaged_payload_on_the_line_is_told(
    logs: tuple[Log, Log], plain: object, sqlite_url: str
) -> None:
    log, other = logs
    seq = other.apply(add()).seq
    other.apply(add())
    before = log.live
    connection = plain(sqlite_url)  # type: ignore[operator]
    connection.execute("DROP TRIGGER events_no_update")
    connection.execute(
        "UPDATE events SET payload = zeroblob(length(payload)) WHERE event_key & 255 = ?", (seq,)
    )
    connection.close()
    with pytest.raises(CorruptLedger, match=f"event {seq}"):
        log.catch_up()
    assert log.live is before


def test_a_tensor_written_behind_the_ledgers_back_is_not_followed_from(
    logs: tuple[Log, Log],
) -> None:
    log, other = logs
    other.apply(add())
    log.projector.engine.tensor("w").numpy()[0, 0] += 1.0  # which torch does not count
    with pytest.raises(WeightsChangedOutside, match="w"):
        log.catch_up()


def test_small_events_are_followed_in_one_pass_and_others_by_replay(
    logs: tuple[Log, Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other = logs
    with monkeypatch.context() as patch:
        patch.delattr(following, "replay")
        for name in ("w", "b", "w"):
            other.apply(add(name))
        other.apply_batch([add("b"), add("w")])
        log.catch_up()
    assert same(log, other)
    other.apply(
        IncrementalUpdateRequest(
            "w", factors={"a": torch.randn(16, 1), "b": torch.randn(1, 16)}, learning_rate=0.1
        )
    )
    with monkeypatch.context() as patch, pytest.raises(NameError):
        patch.delattr(following, "replay")
        log.catch_up()
    log.catch_up()
    assert same(log, other)


def test_the_tree_of_states_is_told_of_what_was_followed(
    logs: tuple[Log, Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other = logs
    last = log.live.head.seq
    for _ in range(5):
        other.apply(add())
    log.catch_up()
    lineage = log.history.lineage
    monkeypatch.setattr(lineage, "_load", None)  # whoever reads fails
    assert [lineage.parent(seq) for seq in range(last + 1, last + 6)] == [*range(last, last + 5)]
    assert lineage.size(last + 1) > 0


@pytest.mark.parametrize(
    ("column", "value"),
    [("header", "CAST('{' AS BLOB)"), ("event_hash", "zeroblob(32)"), ("header", "'{'")],
)
def test_a_header_that_is_not_what_its_hash_says_is_told(
    logs: tuple[Log, Log], plain: object, sqlite_url: str, column: str, value: str
) -> None:
    log, other = logs
    other.apply(add())
    seq = other.apply(add()).seq
    before = log.live
    connection = plain(sqlite_url)  # type: ignore[operator]
    connection.execute("DROP TRIGGER events_no_update")
    connection.execute(f"UPDATE events SET {column} = {value} WHERE event_key & 255 = ?", (seq,))
    connection.close()
    with pytest.raises(CorruptLedger, match=f"event {seq}"):
        log.catch_up()
    assert log.live is before


def test_what_is_new_is_read_by_the_connection_that_writes(
    logs: tuple[Log, Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other = logs
    log.apply(add())
    kept = log.history.store._database._writers._kept
    with monkeypatch.context() as patch:
        patch.setattr(Database, "look", None)
        for _ in range(2):
            other.apply(add())
            log.catch_up()
            assert same(log, other)
    assert len(kept) == 1
    kept[0][1].close()
    other.apply(add())
    with pytest.raises(LedgerError):
        log.catch_up()
    assert kept == []  # it is not tried again
    log.catch_up()
    assert same(log, other)
