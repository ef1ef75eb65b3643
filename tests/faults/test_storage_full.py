"""Storage that takes no more: full, read-only or locked.

Nothing is recorded, nothing changes and serving goes on; once storage takes writes again, so does
the ledger.
"""

import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from sqlalchemy import event
from sqlalchemy.pool import Pool

from tests.faults import folders, models
from tests.faults.folders import MODEL
from tests.serving import serving
from weightledger import Ledger, TorchEngine
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import StorageBusy, StorageError, StorageFull
from weightledger.ledger.log import Log
from weightledger.ledger.sql import sqlite_opening
from weightledger.ledger.sql.writing import WritingConnections

PAGE_BYTES = 8192


@dataclass(eq=False)
class Pragmas:
    """Statements that every connection executes whenever it is taken from its pool."""

    statements: tuple[str, ...] = ()

    def __call__(self, connection, _record, _proxy) -> None:
        for statement in self.statements:
            connection.execute(statement)


@pytest.fixture
def pragmas(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pragmas]:
    made = Pragmas()
    # So that a writer's connection is taken from the pool for each write.
    monkeypatch.setattr(WritingConnections, "keep", lambda self, opened: opened[0].close())
    event.listen(Pool, "checkout", made)
    yield made
    event.remove(Pool, "checkout", made)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


@contextlib.contextmanager
def serving_log(folder: Path) -> Iterator[Log]:
    """A log with live weights, and one update in it."""
    with folders.opened(folder) as ledger:
        log = ledger.model(MODEL, engine=TorchEngine(models.factory()))
        log.apply(folders.request("2.bias", [1.0, 2.0, 3.0, 4.0]))
        yield log


@contextlib.contextmanager
def nothing_changes(log: Log) -> Iterator[None]:
    """The log and the live weights are afterwards what they were before."""
    events, live, outputs = log.events(), log.live, infer(log)
    yield
    assert log.events() == events
    assert log.live == live
    assert log.verify_live()[1].value == live.state.value
    assert torch.equal(infer(log), outputs)


def infer(log: Log) -> torch.Tensor:
    with log.projector.engine.lease() as live, torch.inference_mode():
        return live.module(torch.linspace(-1, 1, 400)[None])


def large(log: Log, value: int = 1):
    """An update with a payload of 70 pages."""
    generator = torch.Generator().manual_seed(value)
    return log.apply(folders.request("0.weight", torch.randn(400, 400, generator=generator)))


def full(folder: Path, *, spare_pages: int = 0) -> tuple[str, ...]:
    """What makes the database full when it has grown by so many pages."""
    with contextlib.closing(sqlite3.connect(folder / "ledger.db")) as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    return (f"PRAGMA max_page_count = {pages + spare_pages}",)


ROOM = ("PRAGMA max_page_count = 1000000",)


# Full


@pytest.mark.parametrize("spare_pages", [0, 1, 20, 60])
def test_an_update_that_does_not_fit_changes_nothing(
    folder: Path, pragmas: Pragmas, spare_pages: int
) -> None:
    with serving_log(folder) as log:
        pragmas.statements = full(folder, spare_pages=spare_pages)
        with nothing_changes(log), pytest.raises(StorageFull, match="no space is left"):
            large(log)
        pragmas.statements = ROOM
        assert large(log).seq == 2
        assert verify(log.history).problem is None


@pytest.mark.parametrize(
    "write",
    [
        lambda log: log.apply(folders.request("2.bias", torch.randn(4))),
        lambda log: log.record({**log.state(), "0.bias": torch.randn(400)}),
        lambda log: log.create_version("x" * 500),
        lambda log: log.rollback("head~1"),
    ],
    ids=["update", "record", "version", "rollback"],
)
def test_the_write_for_which_no_page_is_left_changes_nothing(
    folder: Path, pragmas: Pragmas, write: Callable[[Log], object]
) -> None:
    with serving_log(folder) as log:
        log.create_initial_version()
        pragmas.statements = full(folder, spare_pages=1)
        with pytest.raises(StorageFull):
            for _ in range(100):
                write(log)
        with nothing_changes(log), pytest.raises(StorageFull):
            write(log)
        pragmas.statements = ROOM
        write(log)
        assert log.live.head == log.history.head()
        assert verify(log.history).problem is None


def test_an_event_counts_though_its_snapshot_does_not_fit(folder: Path, pragmas: Pragmas) -> None:
    with serving_log(folder) as log:
        large(log, 1)
        anchors = [anchor.node for anchor in log.history.store.snapshots()]
        pragmas.statements = full(folder, spare_pages=85)
        recorded = large(log, 2)
        assert log.live.head == log.history.head() == recorded
        assert [anchor.node for anchor in log.history.store.snapshots()] == anchors == [0]
        pragmas.statements = ROOM
        log.apply(folders.request("2.bias", [0.0, 0.0, 0.0, 0.0]))
        assert [anchor.node for anchor in log.history.store.snapshots()] == [0, 4]
        assert verify(log.history).problem is None


def test_registering_on_a_full_disk_registers_nothing(folder: Path, pragmas: Pragmas) -> None:
    with folders.opened(folder) as ledger:
        pragmas.statements = full(folder)
        with pytest.raises(StorageFull):
            ledger.model(MODEL, engine=TorchEngine(models.factory()))
        assert ledger.models() == []
        pragmas.statements = ROOM
        assert ledger.model(MODEL, engine=TorchEngine(models.factory())).live.head.seq == 0


def test_a_server_on_a_full_file_system_serves_on_and_recovers(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", "8m") as small:
        with serving(small / "data", "--model", MODEL) as server, server.client() as http:
            sent = {"parameter_name": "0.weight", "update_data": 0.37}
            inputs = {"inputs": [torch.linspace(-1, 1, 400).tolist()]}

            def update():
                headers = {"idempotency-key": "the-one"}
                return http.post("/v1/models/incremental_update", json=sent, headers=headers)

            log = http.get("/v1/models/updates").json()
            outputs = http.post("/invocations", json=inputs).json()
            fill(small / "filler")
            for _ in range(3):
                reply = update()
                assert reply.status_code == 503, reply.text
                assert reply.json()["error"]["code"] == "storage_full"
                assert reply.headers["retry-after"]
                assert http.get("/v1/models/updates").json() == log
                assert http.post("/invocations", json=inputs).json() == outputs
                assert http.post("/v1/models/verify", json={}).status_code == 200
            (small / "filler").unlink()
            assert update().status_code == 200
            assert http.post("/invocations", json=inputs).json() != outputs
            assert len(http.get("/v1/models/updates").json()["data"]) == len(log["data"]) + 1
        with folders.opened(small / "data") as ledger:
            assert verify(ledger.history(MODEL)).problem is None


@contextlib.contextmanager
def small_file_system(at: Path, size: str) -> Iterator[Path]:
    at.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


def fill(path: Path) -> None:
    """Use up what is left of a file system."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(PAGE_BYTES)):
            pass


# Read-only


def test_a_read_only_database_is_read_and_not_written(folder: Path) -> None:
    with serving_log(folder) as log:
        state = log.state()
    read_only = f"sqlite:///file:{folder / 'ledger.db'}?mode=ro&uri=true"
    with Ledger.open(read_only, upgrade=False) as ledger:
        log = ledger.model(MODEL, engine=TorchEngine(models.factory()))
        with nothing_changes(log), pytest.raises(StorageError, match="cannot be written to"):
            large(log)
        assert all(torch.equal(log.state()[name], state[name]) for name in state)


def test_a_database_that_becomes_read_only_for_a_while(folder: Path, pragmas: Pragmas) -> None:
    with serving_log(folder) as log:
        pragmas.statements = ("PRAGMA query_only = ON",)
        with nothing_changes(log), pytest.raises(StorageError, match="cannot be written to"):
            large(log)
        pragmas.statements = ("PRAGMA query_only = OFF",)
        assert large(log).seq == 2


def test_a_folder_that_is_read_only_says_so_and_recovers(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", "8m") as small:

        def remount(mode: str) -> None:
            subprocess.run(["mount", "-o", f"remount,{mode}", str(small)], check=True)

        (small / "data").mkdir()
        with serving_log(small / "data"):
            pass
        remount("ro")
        with pytest.raises(StorageError, match=r"cannot be (opened|written)") as caught:
            Ledger.open(folders.url_of(small / "data"))
        assert "writ" in str(caught.value)
        remount("rw")
        with Ledger.open(folders.url_of(small / "data")) as ledger:
            assert verify(ledger.history(MODEL)).problem is None


# Locked

LOCKING = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


class Locker:
    """Another process that holds the database's write lock until it is let go."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOCKING, str(folder / "ledger.db")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout.readline() == b"locked\n"

    def release(self) -> None:
        self.process.communicate()


def test_a_lock_that_outlasts_the_timeout_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_opening, "BUSY_S", 0.3)
    with serving_log(folder) as log:
        locker = Locker(folder)
        try:
            started = time.monotonic()
            with nothing_changes(log), pytest.raises(StorageBusy, match="locked by another"):
                large(log)
            assert time.monotonic() - started >= 0.3
        finally:
            locker.release()
        assert large(log).seq == 2


def test_a_lock_shorter_than_the_timeout_is_waited_for(folder: Path) -> None:
    with serving_log(folder) as log:
        locker = Locker(folder)
        release = threading.Timer(0.4, locker.release)
        release.start()
        started = time.monotonic()
        outputs = infer(log)
        assert large(log).seq == 2
        assert time.monotonic() - started >= 0.4
        release.join()
        assert not torch.equal(infer(log), outputs)


@pytest.mark.soak
def test_a_server_whose_database_stays_locked_answers_503(tmp_path: Path) -> None:
    """Takes the whole busy timeout, ten seconds."""
    with serving(tmp_path / "data", "--model", MODEL) as server, server.client() as http:
        locker = Locker(tmp_path / "data")
        sent = {"parameter_name": "2.bias", "update_data": 1.0}
        reply = http.post("/v1/models/incremental_update", json=sent)
        locker.release()
        assert reply.status_code == 503, reply.text
        assert reply.json()["error"]["code"] == "storage_unavailable"
        assert "locked by another writer for 10 s" in reply.json()["error"]["message"]
        assert reply.headers["retry-after"] and reply.headers["x-request-id"]
        assert http.post("/v1/models/incremental_update", json=sent).status_code == 200
