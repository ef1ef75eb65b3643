"""Commits whose sync fails: nothing of them stays for certain, or the error says nobody knows."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.audit.verify import verify

PERSISTENT = 1000

# Applies "before", then "during" while the sync of the journal fails; ends as it is told.
SCRIPT = """
import os, signal, sys
import torch
from pathlib import Path
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.errors import LedgerError

url, fault, number, times, end = sys.argv[1:]

def apply(key):
    return log.apply(IncrementalUpdateRequest("w", 1.0, learning_rate=1.0, idempotency_key=key))

ledger = Ledger.open(url)
log = ledger.model("m", base={"w": torch.zeros(8)})
apply("before")
Path(fault).write_text(f"{number} {times}")
try:
    apply("during")
    print("applied")
except LedgerError as error:
    print(type(error).__name__, error)
assert [event.seq for event in log.events()] == [1, 0], "what failed is seen"
assert torch.equal(log.state()["w"], torch.ones(8))
Path(fault).unlink(missing_ok=True)
if end == "retry":
    print(apply("during").seq)
    ledger.close()
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    built = tmp_path_factory.mktemp("shim") / "failing_sync.so"
    source = Path(__file__).with_name("failing_sync.c")
    command = [compiler, "-shared", "-fPIC", "-o", str(built), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return built


def run(shim: Path, folder: Path, number: int, times: int, end: str) -> list[str]:
    """The script's lines."""
    fault = folder / "fault"
    environment = {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "FAILING_SYNC_OF": "-wal",
        "FAILING_SYNC_FAULT": str(fault),
    }
    arguments = [f"sqlite:///{folder / 'a.db'}", str(fault), str(number), str(times), end]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.splitlines()


def keys(folder: Path) -> list[str]:
    """The idempotency keys in the log, which is whole, after the crash."""
    with Ledger.open(f"sqlite:///{folder / 'a.db'}") as ledger:
        history = ledger.history("m")
        assert verify(history).problem is None
        return [key for event in history.events() if (key := event.idempotency_key)]


def test_a_commit_that_failed_once_is_certain_to_be_gone(shim: Path, tmp_path: Path) -> None:
    (said,) = run(shim, tmp_path, errno.EIO, 1, "crash")
    assert said.startswith("StorageError ") and "nothing was recorded" in said
    assert keys(tmp_path) == ["before"]


def test_where_a_failed_commit_cannot_be_withdrawn_the_error_says_so(
    shim: Path, tmp_path: Path
) -> None:
    (said,) = run(shim, tmp_path, errno.EIO, PERSISTENT, "crash")
    assert said.startswith("OutcomeUnknown ")
    assert "is not known" in said and "idempotency key" in said
    assert keys(tmp_path) in (["before"], ["during", "before"])


def test_sent_again_with_its_key_it_is_recorded_once(shim: Path, tmp_path: Path) -> None:
    said = run(shim, tmp_path, errno.EIO, PERSISTENT, "retry")
    assert said[0].startswith("OutcomeUnknown ") and said[1] == "2"
    assert keys(tmp_path) == ["during", "before"]
    with Ledger.open(f"sqlite:///{tmp_path / 'a.db'}") as ledger:
        log = ledger.model("m")
        again = IncrementalUpdateRequest("w", 1.0, learning_rate=1.0, idempotency_key="during")
        assert log.apply(again).seq == 2
        assert torch.equal(log.state()["w"], torch.full((8,), 2.0))


def test_a_full_disk_is_told_from_other_failures_of_a_sync(shim: Path, tmp_path: Path) -> None:
    (said,) = run(shim, tmp_path, errno.ENOSPC, PERSISTENT, "crash")
    assert said.startswith("FullOutcomeUnknown ") and "no space" in said
