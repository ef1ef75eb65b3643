"""What else in a process opens a ledger's file, or removes the files beside it: no commit is lost.

Python's own `sqlite3` is a second copy of SQLite beside the one that the ledger uses, and closing
its connection takes all POSIX locks of the process with it (https://sqlite.org/howtocorrupt.html).
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from weightledger import Ledger
from weightledger.ledger.sql.sqlite_driver import driver

# For each file three updates, then something, then three more; the process ends without closing.
_PROGRAM = """
import json, os, sqlite3, subprocess, sys
import torch
from weightledger import IncrementalUpdateRequest, Ledger


def update(log):
    for _ in range(3):
        log.apply(IncrementalUpdateRequest("w", 1.0, 1.0))


for file, something, close in json.loads(sys.argv[1]):
    ledger = Ledger.open("sqlite:///" + file)
    log = ledger.model("m", base={"w": torch.zeros(4)})
    update(log)
    exec(something)
    update(log)
    assert [event.seq for event in log.events()] == [6, 5, 4, 3, 2, 1, 0]
    assert log.verify().ok
    if close:
        ledger.close()
os._exit(0)
"""
_ELSEWHERE = "subprocess.run([sys.executable, '-c', {code!r}, file], check=True)"
_LOOK = (
    "connection = sqlite3.connect(file); "
    "connection.execute('SELECT count(*) FROM events').fetchone(); connection.close()"
)
_CODE = f"import sqlite3, sys; file = sys.argv[1]; {_LOOK}"
_OPEN_AND_CLOSE = "open(file, 'rb').close(); open(file + '-shm', 'rb').close()"
SOMETHING = {
    "read with sqlite3": _LOOK,
    "opened, closed, then read by another process": (
        _OPEN_AND_CLOSE + "; " + _ELSEWHERE.format(code=_CODE)
    ),
    "read with sqlite3, then by another process": _LOOK + "; " + _ELSEWHERE.format(code=_CODE),
    "another ledger was closed": (
        "other = Ledger.open('sqlite:///' + file); other.model('m').events(); other.close(); "
        + _ELSEWHERE.format(code=_CODE)
    ),
    "the log was removed": "os.unlink(file + '-wal')",
}


CLOSED = "closed"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The databases that the program left."""
    folder = tmp_path_factory.mktemp("second")
    files = {name: folder / f"{number}.db" for number, name in enumerate((*SOMETHING, CLOSED))}
    cases = [(str(files[name]), something, False) for name, something in SOMETHING.items()]
    cases.append((str(files[CLOSED]), _LOOK, True))
    subprocess.run([sys.executable, "-c", _PROGRAM, json.dumps(cases)], check=True)
    return files


@pytest.mark.parametrize("something", SOMETHING)
def test_no_commit_is_lost(files: dict[str, Path], something: str) -> None:
    with Ledger.open(f"sqlite:///{files[something]}") as ledger:
        log = ledger.model("m")
        assert [event.seq for event in log.events()] == [6, 5, 4, 3, 2, 1, 0]
        assert log.verify().ok


def test_the_log_goes_when_the_last_one_closes(files: dict[str, Path]) -> None:
    file = files[CLOSED]
    assert not Path(f"{file}-wal").exists()
    connection = driver.connect(f"file:{file}?immutable=1", uri=True)
    assert connection.execute("SELECT count(*) FROM events").fetchone() == (7,)
    connection.close()
