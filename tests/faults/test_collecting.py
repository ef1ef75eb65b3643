"""gc beside a writer that was suspended, or whose clock is off: nothing referred to is deleted."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.faults.children import Children
from tests.waiting import until
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger import retention
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.history.anchor_repair import damaged_snapshots, rewrite_snapshot
from weightledger.ledger.history.snapshots import read_manifest
from weightledger.ledger.tensors.digest import content_digest

MODEL = "m"
SIDE = 400
HOUR_US = 3_600_000_000


def in_two_hours() -> int:
    """The clock of a collector that is off by as much."""
    return time.time_ns() // 1000 + 2 * HOUR_US


def change(log: Log, seed: int) -> None:
    """An update whose payload is a blob."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(SIDE, SIDE, generator=generator)
    log.apply(IncrementalUpdateRequest("w", data, learning_rate=1.0))


def suspend_itself(url: str, where: str) -> int:
    """Write, and be stopped when the blobs are there and what refers to them is not."""
    log = Ledger.open(url).model(MODEL, alpha=100)

    stops = iter([signal.SIGSTOP])

    def stopping(original):
        def stop(*args):
            for once in stops:
                os.kill(os.getpid(), once)
            return original(*args)

        return stop

    if where == "snapshot":
        log.history.store.add_snapshot = stopping(log.history.store.add_snapshot)
        log.snapshot()
    else:
        log.history.blobs.held = stopping(log.history.blobs.held)
        change(log, 2)
    return log.history.head().seq


@pytest.fixture
def database_url(empty_database_url: str) -> str:
    """What has tables has said where its blobs are."""
    return empty_database_url


@pytest.fixture(params=["database", "folder"])
def ledger(request: pytest.FixtureRequest, database_url: str, tmp_path: Path):
    blobs = str(tmp_path / "blobs") if request.param == "folder" else None
    with Ledger.open(database_url, blob_url=blobs) as opened:
        base = {"w": torch.zeros(SIDE, SIDE)}
        change(opened.model(MODEL, base=base, alpha=100), 1)
        yield opened


@pytest.mark.parametrize("where", ["snapshot", "event"])
def test_a_suspended_writer_finds_out_what_was_collected(
    ledger: Ledger, database_url: str, where: str, request: pytest.FixtureRequest
) -> None:
    if where == "event" and "database" in request.node.callspec.params["ledger"]:
        pytest.skip("an event's blobs are written in its transaction there")
    running = Children(1)
    try:
        running._pipes[0].send((suspend_itself, (database_url, where)))
        process = psutil.Process(running.processes[0].pid)
        until(lambda: process.status() == psutil.STATUS_STOPPED)
        report = retention.collect(ledger.history(MODEL), dry_run=False, now_us=in_two_hours)
        assert report.blobs > 0, "nothing was there to collect"
        process.resume()
        assert isinstance(running._pipes[0].recv(), int)
    finally:
        running.end()
    history = ledger.history(MODEL)
    assert damaged_snapshots(history) == {}
    assert verify(history).problem is None
    assert len(history.store.snapshots()) == (2 if where == "snapshot" else 1)
    ledger.model(MODEL)


def test_a_clock_that_is_off_decides_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process's clock runs ahead; the database's and the file system's do not."""
    history, real = ledger.history(MODEL), time.time_ns
    history.blobs.put(*orphan(b"on the way"))
    monkeypatch.setattr(time, "time_ns", lambda: real() + 2 * HOUR_US * 1000)
    monkeypatch.setattr(time, "time", lambda: (real() + 2 * HOUR_US * 1000) / 1e9)
    assert retention.collect(history, dry_run=False).blobs == 0
    assert history.blobs.get(orphan(b"on the way")[0]) == b"on the way"


def orphan(data: bytes) -> tuple[bytes, bytes]:
    return content_digest(data), data


def test_gc_leaves_what_was_put_again_since_it_listed_it_whatever_its_clock(
    ledger: Ledger,
) -> None:
    """A writer that puts a blob which is there already counts on finding it there."""
    history = ledger.history(MODEL)
    blobs = history.blobs
    digest, data = orphan(b"an orphan" * 50_000)
    blobs.put(digest, data)

    def touched() -> int:
        return next(item.touched_at for item in original() if item.digest == digest)

    def listed_then_put():
        items = list(original())
        before = touched()
        until(lambda: (blobs.put(digest, data), touched() > before)[1])
        return iter(items)

    original, blobs.stored = blobs.stored, listed_then_put
    assert retention.collect(history, dry_run=False, now_us=in_two_hours).blobs == 0
    assert blobs.get(digest) == data
    blobs.stored = original
    assert retention.collect(history, dry_run=False, now_us=in_two_hours).blobs == 1


def test_gc_drops_nothing_while_what_it_has_to_keep_is_damaged(ledger: Ledger) -> None:
    log = ledger.model(MODEL, alpha=100)
    log.snapshot()
    head = log.live.head.node
    snapshot = next(s for s in log.history.store.snapshots() if s.node == head)
    blobs = log.history.blobs
    digest = read_manifest(blobs.get(snapshot.manifest)).digests["weights/w"]
    blobs.rewrite(digest, bytes(4 * SIDE * SIDE))
    before = log.history.head()
    with pytest.raises(CorruptLedger, match=f"snapshot at event {head}.*repair"):
        retention.collect(log.history, dry_run=False, now_us=in_two_hours)
    assert log.history.head() == before
    assert rewrite_snapshot(log.history, head) == 1
    assert retention.collect(log.history, dry_run=False, now_us=in_two_hours).snapshots == 1
    assert verify(log.history).problem is None
