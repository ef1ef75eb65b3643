"""A disk without a byte left: reading goes on, writing is refused for certain, collecting works."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.api.test_command import ok
from tests.faults import folders, models
from tests.faults.folders import MODEL
from tests.serving import serving
from weightledger import Ledger, TorchEngine
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import FullOutcomeUnknown, StorageFull
from weightledger.ledger.log import Log
from weightledger.ledger.retention import GcReport, collect
from weightledger.ledger.sql.reserve import SIZE_BYTES

BLOCK = 4096
HOUR_US = 3_600_000_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 40 MiB."""
    made = tmp_path / "data"
    made.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(made)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield made
    subprocess.run(["umount", "--lazy", str(made)], check=True)


@pytest.fixture
def folder(disk: Path) -> Path:
    """A closed ledger right on it: 16 updates of 640 KB, of whose states two have a name."""
    made = disk
    with folders.opened(made) as ledger:
        log = ledger.model(MODEL, engine=TorchEngine(models.factory()))
        log.create_initial_version()
        for value in range(16):
            _large(log, value)
            if value == 7:
                log.create_version("half")
    assert (made / "ledger.db-reserve").stat().st_size == SIZE_BYTES
    return made


def fill(disk: Path, left: int = 0) -> None:
    """Leave so many bytes."""
    room = os.statvfs(disk).f_bavail * BLOCK - left
    with (disk / "filler").open("ab") as file:
        if room > 0:
            os.posix_fallocate(file.fileno(), file.tell(), room)


def test_a_ledger_on_a_full_disk_is_read_and_verified(disk: Path, folder: Path) -> None:
    fill(disk)
    for _ in range(3):  # what is let go of to read is taken back
        with Ledger.open(folders.url_of(folder), upgrade=False) as ledger:
            history = ledger.history(MODEL)
            assert history.head().seq == 18
            assert verify(history).problem is None
        fill(disk)
    at = ("--data-dir", str(folder))
    assert "half" in ok("version", "list", *at)
    assert "update_16" in ok("log", "-n", "1", *at)
    assert "ok" in ok("verify", *at)


def test_whoever_was_killed_with_some_of_the_reserve_leaves_the_rest(
    disk: Path, folder: Path
) -> None:
    """Nobody took back what he had let go of; opening wanted all of it to be there."""
    for left in (3, 2, 1):
        fill(disk)
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, folders.url_of(folder), MODEL],
            env=os.environ,
            check=False,
            capture_output=True,
        )
        assert killed.returncode == -9, killed.stderr
        fill(disk)
        with Ledger.open(folders.url_of(folder), upgrade=False) as ledger:  # and tidies up
            assert ledger.history(MODEL).head().seq == 18
        assert (folder / "ledger.db-reserve").stat().st_size == left * SIZE_BYTES // 4


KILLED = """
import os, sys
from weightledger import Ledger
Ledger.open(sys.argv[1], upgrade=False).history(sys.argv[2]).head()
os.kill(os.getpid(), 9)
"""


def test_without_its_reserve_it_says_what_is_missing(disk: Path, folder: Path) -> None:
    (folder / "ledger.db-reserve").unlink()
    fill(disk)
    with pytest.raises(StorageFull, match="no space is left"):
        Ledger.open(folders.url_of(folder), upgrade=False)


def test_a_server_starts_on_a_full_disk_and_goes_on_once_there_is_room(
    disk: Path, folder: Path
) -> None:
    fill(disk)
    body = {"parameter_name": "0.bias", "update_data": 0.5}
    with serving(folder, "--model", MODEL) as server, server.client() as http:
        before = server.shown()
        fill(disk)
        refused = http.post("/v1/models/incremental_update", json=body)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "storage_full"
        assert "nothing was recorded" in refused.json()["error"]["message"]
        assert server.shown() == before
        assert http.get("/v1/models/status").status_code == 200
        (disk / "filler").unlink()
        assert http.post("/v1/models/incremental_update", json=body).status_code == 200
    ok("verify", "--data-dir", str(folder))


def test_a_commit_that_does_not_fit_is_withdrawn_for_certain(disk: Path, folder: Path) -> None:
    with folders.opened(folder) as ledger:
        log = ledger.model(MODEL)
        fill(disk, 64 * 1024)
        before = log.history.head()
        for value in range(3):
            with pytest.raises(StorageFull) as refused:
                _large(log, value)
            assert not isinstance(refused.value, FullOutcomeUnknown)
        assert log.history.head() == before
    assert (folder / "ledger.db-reserve").stat().st_size == SIZE_BYTES


def test_what_does_not_fit_any_more_puts_the_journal_into_the_database(
    disk: Path, folder: Path
) -> None:
    with folders.opened(folder) as ledger:
        log = ledger.model(MODEL)
        for _ in range(40):
            _small(log)
        fill(disk)
        with contextlib.suppress(StorageFull):
            _small(log)
        for _ in range(10):
            _small(log)
        assert verify(log.history).problem is None


def test_gc_runs_on_a_full_disk_and_updates_fill_what_it_freed(disk: Path, folder: Path) -> None:
    fill(disk)
    report = _collect(folder)
    assert report.pruned > 5
    assert report.bytes > 4_000_000
    # The file is as long as it was; a little room, for the journal, is enough to go on.
    (disk / "filler").unlink()
    fill(disk, 2 * SIZE_BYTES)
    with folders.opened(folder) as ledger:
        log = ledger.model(MODEL)
        size = (folder / "ledger.db").stat().st_size
        for value in range(4):
            try:
                _large(log, value)
            except StorageFull:
                _large(log, value)
        assert (folder / "ledger.db").stat().st_size == size
        assert verify(log.history).problem is None
        for name in ("v0", "v1"):
            log.history.weights(name)


def test_whoever_collects_keeps_the_reserve_again(folder: Path) -> None:
    """A server that collected had it back only when it was closed."""
    reserve = folder / "ledger.db-reserve"
    with Ledger.open(folders.url_of(folder), upgrade=False) as ledger:
        assert ledger.store.give_way()
        assert reserve.stat().st_size == SIZE_BYTES // 2
        collect(ledger.history(MODEL), dry_run=True)
        assert reserve.stat().st_size == SIZE_BYTES


def _collect(folder: Path) -> GcReport:
    with Ledger.open(folders.url_of(folder), upgrade=False) as ledger:
        later = time.time_ns() // 1000 + 2 * HOUR_US
        return collect(ledger.history(MODEL), dry_run=False, now_us=lambda: later)


def _large(log: Log, value: int) -> None:
    generator = torch.Generator().manual_seed(value)
    log.apply(folders.request("0.weight", torch.randn(400, 400, generator=generator)))


def _small(log: Log) -> None:
    log.apply(folders.request("2.bias", torch.randn(4)))
