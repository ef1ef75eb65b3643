"""A wait for what never comes ends, with its name; work of any length does not end it."""

import itertools
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import waiting
from tests.waiting import GaveUp, MachineRest, until

_WAITS = """
import threading
def test_that_waits(): threading.Event().wait()
"""
_RUN = """
import functools, sys, pytest
from tests.standstill import Standstill
from tests.waiting import MachineRest
class Impatient:
    def pytest_configure(self, config):
        rest = functools.partial(MachineRest, lambda: 0.0)
        config.pluginmanager.register(Standstill(config, 0.1, rest))
pytest.main(["-p", "no:cacheprovider", "-p", "no:schemathesis", sys.argv[1]], plugins=[Impatient()])
"""


def test_a_test_that_waits_for_ever_ends_by_name(tmp_path: Path) -> None:
    file = tmp_path / "test_waits.py"
    file.write_text(_WAITS)
    ended = subprocess.run(
        [sys.executable, "-c", _RUN, str(file)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 70
    assert "test_waits.py::test_that_waits: the machine has done nothing" in ended.stderr
    assert "in test_that_waits" in ended.stderr  # what it is at


def test_who_waits_for_what_never_comes_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own looking is work of its process, and not of anybody who could bring it."""
    monkeypatch.setattr(waiting, "MACHINE_STILL_S", 0.1)
    monkeypatch.setattr(waiting, "_machine_cpu_s", lambda: 0.0)
    with pytest.raises(GaveUp, match="the answer: the machine has done nothing"):
        until(lambda: False, "the answer")


def test_asking_is_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the asking is, what it waits for stands still; what others do is work."""
    monkeypatch.setattr(waiting, "STILL_S", 0.7)
    with pytest.raises(GaveUp, match=r"the answer: nothing has moved"):
        until(lambda: sum(range(200_000)) < 0, "the answer", cpu_s=3)


def test_a_row_of_short_processes_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    over, program, done = threading.Event(), "sum(range(10_000_000))", []

    def work() -> None:
        while not over.is_set() and len(done) < 100:
            done.append(subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True))

    monkeypatch.setattr(waiting, "STILL_S", 30.0)
    worker = threading.Thread(target=work)
    worker.start()
    try:
        with pytest.raises(GaveUp, match="the answer: not after 1 s of processor time"):
            until(lambda: False, "the answer", cpu_s=1)
        assert 3 < len(done) < 100  # each is over soon; without those that ended it would go on
    finally:
        over.set()
        worker.join()


def test_a_machine_at_work_does_not_rest() -> None:
    used = itertools.count(step=10)
    busy, idle = MachineRest(lambda: float(next(used))), MachineRest(lambda: 0.0)
    time.sleep(2.1)  # its next look is not before that
    assert busy.lasts_s() == 0
    assert idle.lasts_s() > 2


def test_no_meeting_is_without_end() -> None:
    """Whoever does not come to a barrier, since it failed before, is not waited for for ever."""
    endless = [
        f"{file}: {line.strip()}"
        for file in sorted(Path(__file__).parent.rglob("*.py"))
        for line in file.read_text().splitlines()
        if re.search(r"\.Barrier\([^)]", line) and "timeout=" not in line
    ]
    assert endless == []
