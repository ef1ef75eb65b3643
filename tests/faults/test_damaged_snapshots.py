"""A snapshot that is damaged or gone: the log has other ways to every state, and writes it anew."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import CorruptLedger, DamagedSnapshot, NotFound
from weightledger.ledger.history.anchor_repair import damaged_snapshots, rewrite_snapshot
from weightledger.ledger.history.snapshots import read_manifest
from weightledger.ledger.store.attached import Snapshot

MODEL = "m"
FIRST, MIDDLE, LAST = 0, 4, 8  # where there are snapshots; 10 is the head
HEAD = 10


def update(log: Log, seed: int) -> None:
    """Change every tensor in every bit."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (400, 400), "b": (7,)}
    log.apply_batch(
        [
            IncrementalUpdateRequest(
                name, torch.randn(shape, generator=generator), learning_rate=1.0
            )
            for name, shape in shapes.items()
        ]
    )


@pytest.fixture(params=["database", "folder"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str | None]:
    """Where the events are, and the blobs."""
    blobs = str(tmp_path / "blobs") if request.param == "folder" else None
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with Ledger.open(url, blob_url=blobs) as ledger:
        base = {"w": torch.ones(400, 400), "b": torch.ones(7)}
        log = ledger.model(MODEL, base=base, alpha=100)
        for seq in range(1, HEAD + 1):
            update(log, seq)
            if seq in (MIDDLE, LAST):
                log.snapshot()
        assert [anchor.node for anchor in log.history.store.snapshots()] == [FIRST, MIDDLE, LAST]
    return url, blobs


@pytest.fixture
def ledger(home: tuple[str, str | None]) -> Iterator[Ledger]:
    with Ledger.open(home[0]) as opened:
        yield opened


def snapshot(ledger: Ledger, node: int) -> Snapshot:
    return next(s for s in ledger.history(MODEL).store.snapshots() if s.node == node)


def tensor(ledger: Ledger, node: int) -> bytes:
    """The digest of a tensor of a snapshot."""
    state = read_manifest(ledger.store.blobs.get(snapshot(ledger, node).manifest))
    return state.digests["weights/w"]


def spoil(ledger: Ledger, digest: bytes, *, gone: bool) -> None:
    """Flip a bit of a blob, or take it away."""
    data = bytearray(ledger.store.blobs.get(digest))
    data[len(data) // 2] ^= 1
    if gone:
        assert ledger.store.blobs.delete_unreferenced(digest, 1 << 62)
    else:
        ledger.store.blobs.rewrite(digest, bytes(data))


def states(ledger: Ledger) -> list[torch.Tensor]:
    history = ledger.history(MODEL)
    return [history.state(f"seq:{seq}")["w"] for seq in range(HEAD + 1)]


@pytest.mark.parametrize("node", [FIRST, MIDDLE, LAST])
@pytest.mark.parametrize("what", [tensor, lambda *at: snapshot(*at).manifest])
@pytest.mark.parametrize("gone", [False, True])
def test_every_state_is_reached_without_a_snapshot_that_is_damaged(
    ledger: Ledger, what, node: int, gone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    before = states(ledger)
    spoil(ledger, what(ledger, node), gone=gone)
    assert all(torch.equal(*pair) for pair in zip(states(ledger), before, strict=True))
    assert f"snapshot at event {node}" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    log = ledger.model(MODEL, alpha=100)  # a start: live weights come to the head
    assert torch.equal(log.state()["w"], before[HEAD])
    for seq in (MIDDLE - 1, FIRST, LAST):
        log.rollback(f"seq:{seq}")
        assert torch.equal(log.state()["w"], before[seq])
    log.catch_up()
    assert log.verify_live()[1].value == log.live.state.value

    report = verify(log.history)
    assert report.problem is not None and report.bad_seq == node
    assert list(damaged_snapshots(log.history)) == [node]
    assert rewrite_snapshot(log.history, node) == 1
    assert damaged_snapshots(log.history) == {}
    assert verify(log.history).problem is None
    assert rewrite_snapshot(log.history, node) == 0


@pytest.mark.parametrize("gone", [True, False])
def test_a_payload_that_is_damaged_is_gone_round_as_well(ledger: Ledger, gone: bool) -> None:
    before = states(ledger)
    history = ledger.history(MODEL)
    large, *_ = history.require(MIDDLE + 1).blobs
    spoil(ledger, large, gone=gone)
    after = states(ledger)
    assert all(torch.equal(*pair) for pair in zip(after, before, strict=True))
    assert verify(history).bad_seq == MIDDLE + 1


def test_when_no_way_is_left_the_first_damage_is_named(ledger: Ledger) -> None:
    for node in (LAST, MIDDLE, FIRST):
        spoil(ledger, tensor(ledger, node), gone=True)
    with pytest.raises(DamagedSnapshot, match=f"snapshot at event {LAST}"):
        ledger.model(MODEL)
    with pytest.raises(CorruptLedger):
        rewrite_snapshot(ledger.history(MODEL), LAST)
    with pytest.raises(NotFound, match="no snapshot at event 3"):
        rewrite_snapshot(ledger.history(MODEL), 3)


def test_tensors_that_threads_read_go_round_damage_as_well(tmp_path: Path) -> None:
    """Many of them, of more than one size: each under its own name, with every bit."""
    with Ledger.open(f"sqlite:///{tmp_path}/a.db") as opened:
        base = {f"w{n}": torch.full((200_000 + n,), float(n)) for n in range(12)}
        log = opened.model(MODEL, base=base, alpha=100)
        names = [f"weights/w{n}" for n in range(11, -1, -1)]
        update = IncrementalUpdateRequest("w4", torch.ones(200_004), learning_rate=1.0)
        log.apply(update)
        log.snapshot()
        history = opened.history(MODEL)
        head = history.head()
        expected = {name: base[name.removeprefix("weights/")] for name in names}
        expected["weights/w4"] = base["w4"] + 1
        state = read_manifest(opened.store.blobs.get(snapshot(opened, head.node).manifest))
        for damage in (False, True):
            if damage:  # the snapshot before it leads there as well
                spoil(opened, state.digests["weights/w4"], gone=False)
            read = history.tensors(head.node, head.state_after, names)
            assert list(read) == names
            assert all(torch.equal(read[name], expected[name]) for name in names)
        spoil(opened, state.digests["weights/w7"], gone=False)
        with pytest.raises(DamagedSnapshot, match="weights/w7"):
            history.tensors(head.node, head.state_after, names)
