"""What every executor promises: by processes of this machine, and on a Ray cluster."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.waiting import until
from weightledger.ledger.errors import (
    CorruptLedger,
    ExecutorUnavailable,
    LedgerError,
    NotFound,
    WorkersDied,
)
from weightledger.ledger.parallel import Executor, Task, in_order
from weightledger.ledger.parallel.choosing import executing
from weightledger.ledger.parallel.local import LocalExecutor, _Round

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Workers find this suite's tasks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
        yield


def task(name: str, **data: Any) -> Task:
    return Task(f"tests.parallel.tasks:{name}", data)


class Suite:
    """The contract of `ledger.parallel`."""

    def test_every_task_is_done_once_and_has_its_result(self, executor: Executor) -> None:
        told: list[tuple[int, int]] = []
        tasks = [task("square", number=number) for number in range(20)]
        results = in_order(executor.run(tasks, lambda *how: told.append(how)), len(tasks))
        assert [one["square"] for one in results] == [number**2 for number in range(20)]
        assert told[-1][0] == told[-1][1] > 0

    def test_plain_data_comes_back_as_it_was(self, executor: Executor) -> None:
        (result,) = in_order(executor.run([task("unlike_json")]), 1)
        assert result == [float("inf"), float("-inf"), 0.1]

    def test_an_error_is_raised_as_it_was(self, executor: Executor) -> None:
        for tasks in ([task("refuse", seq=7)], [task("refuse", seq=7), task("refuse", seq=7)]):
            with pytest.raises(CorruptLedger, match="not what they were") as raised:
                list(executor.run(tasks))
            assert raised.value.seq == 7
        with pytest.raises(NotFound) as missing:
            list(executor.run([task("not_there"), task("not_there")]))
        assert missing.value.param == "thing"

    def test_it_goes_on_after_an_error(self, executor: Executor) -> None:
        with pytest.raises(CorruptLedger):
            list(
                executor.run([task("square", number=n) for n in range(9)] + [task("refuse", seq=1)])
            )
        assert len(list(executor.run([task("square", number=n) for n in range(9)]))) == 9


class TestInThisProcess(Suite):
    @pytest.fixture
    def executor(self) -> Executor:
        return LocalExecutor(1)


@pytest.fixture(scope="module")
def three_processes() -> Iterator[Executor]:
    with executing("local", 3) as made:
        yield made


class TestProcesses(Suite):
    @pytest.fixture
    def executor(self, three_processes: Executor) -> Executor:
        return three_processes


def test_forks_keep_to_the_suite_too() -> None:
    """In a process of its own: one with other threads is not forked, as this one may be."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # Without conftest.py, whose watch over tests is a thread.
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:xdist"]
    command += ["-p", "no:cacheprovider"]
    suite = Path(__file__).with_name("forked_executors.py")
    done = subprocess.run([*command, str(suite)], cwd=ROOT, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalExecutor]:
    """Leaves every task to a worker."""
    monkeypatch.setattr(_Round, "_work_here", lambda self: None)
    with executing("local", 2) as executor:
        assert isinstance(executor, LocalExecutor)
        yield executor


def test_what_a_killed_worker_did_is_done_again(elsewhere: LocalExecutor, tmp_path: Path) -> None:
    tasks = [task("die", marks=str(tmp_path), times=2, by=os.getpid()), task("square", number=3)]
    assert in_order(elsewhere.run(tasks), 2)[0] == "done"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_task_whose_workers_always_die_is_given_up(
    elsewhere: LocalExecutor, tmp_path: Path
) -> None:
    tasks = [task("die", marks=str(tmp_path), times=99, by=os.getpid()), task("square", number=3)]
    with pytest.raises(WorkersDied, match=r"3 times.*-9"):
        list(elsewhere.run(tasks))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_fault_of_a_task_is_told_with_its_place(elsewhere: LocalExecutor) -> None:
    with pytest.raises(LedgerError, match="break_down"):
        list(elsewhere.run([task("break_down"), task("break_down")]))


def begun(folder: Path) -> set[int]:
    """The processes that have begun to wait."""
    return {int(one.name) for one in folder.iterdir()}


def test_who_stops_waiting_ends_the_work(tmp_path: Path) -> None:
    """In workers and in this process; nothing of it is left."""
    tasks = [task("square", number=1)] + [task("wait", begun=str(tmp_path))] * 2
    with executing("local", 2) as executor:
        running = executor.run(tasks)
        next(running)
        until(lambda: len(begun(tmp_path)) == 2, "two tasks were not begun")
        (worker,) = begun(tmp_path) - {os.getpid()}
        running.close()  # type: ignore[attr-defined]
        assert _is_gone(worker)
        assert in_order(executor.run([task("square", number=n) for n in range(3)]), 3)


def test_workers_end_with_who_started_them(tmp_path: Path) -> None:
    source = """
import sys
from tests.parallel.test_executors import task
from weightledger.ledger.parallel.choosing import executing
with executing("local", 2) as executor:
    list(executor.run([task("wait", begun=sys.argv[1])] * 2))
"""
    process = subprocess.Popen([sys.executable, "-c", source, str(tmp_path)])
    try:
        until(lambda: len(begun(tmp_path)) == 2, "two tasks were not begun", pid=process.pid)
        (worker,) = begun(tmp_path) - {process.pid}
    finally:
        process.kill()
        process.wait()
    until(lambda: _is_gone(worker), "the worker is left")


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_cluster_that_is_not_there_is_named() -> None:
    pytest.importorskip("ray")
    for address in ("127.0.0.1:1", "nonsense"):
        expected = pytest.raises(ExecutorUnavailable, match=f"no Ray cluster answers at {address}")
        with expected, executing("ray", 2, address):
            pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    expected = pytest.raises(ExecutorUnavailable, match=r"pip install 'weightledger\[ray\]'")
    with expected, executing("ray", 2):
        pass
