"""The queue of SQLite's writers: who came first is first, and who is dead or stopped is passed."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.children import Children
from tests.faults.places import places
from tests.waiting import until
from weightledger.ledger.sql import byte_locks, file_turns, turns
from weightledger.ledger.sql.file_turns import FileLock, _Patience

FOR_EVER_S = 10**6  # a test that waits for so long has failed

_ours: list[FileLock] = []  # in a child: its lock, from one piece of work to the next


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    path.touch()
    return path


@pytest.fixture
def lock(database: Path) -> Iterator[FileLock]:
    made = FileLock(database, 1)
    yield made
    made.close()


class Waiting:
    """Threads that wait for a turn with a lock each, and in which order they had it."""

    def __init__(self, database: Path, watch: FileLock) -> None:
        self._database, self._watch = database, watch
        self.order: list[str] = []
        self._threads: list[threading.Thread] = []

    def come(self, name: str) -> None:
        """Another one, who has a place once this returns."""
        lock, before = FileLock(self._database, 1), places(self._watch)

        def wait() -> None:
            assert lock.acquire(FOR_EVER_S)
            self.order.append(name)
            lock.release(None)
            lock.close()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        self._threads.append(thread)
        until(lambda: places(self._watch) > before, f"{name} has a place", cpu_s=20)

    def all_had_it(self) -> list[str]:
        until(lambda: not any(map(threading.Thread.is_alive, self._threads)), cpu_s=20)
        return self.order


def test_turns_are_in_the_order_of_coming(database: Path, lock: FileLock) -> None:
    waiting = Waiting(database, lock)
    assert lock.acquire(FOR_EVER_S)
    names = [f"number {number}" for number in range(6)]
    for name in names:
        waiting.come(name)
    lock.release(None)
    assert lock.acquire(FOR_EVER_S)
    assert waiting.order == names, "who had a turn waits behind all who waited then"
    lock.release(None)
    assert waiting.all_had_it() == names


def test_nobody_overtakes_who_has_not_woken_up_yet(database: Path, lock: FileLock) -> None:
    """Between two turns, when who waits was told and has not come to it, nobody has one."""
    assert lock.acquire(0)
    asleep = os.open(lock._path, os.O_RDWR)
    assert byte_locks.take(asleep, file_turns._now(), 1)
    lock.release(None)
    assert byte_locks.held_by_others(lock._opened(), 0, 1) is None
    assert not lock.acquire(0)
    waiting = Waiting(database, lock)
    waiting.come("came later")
    assert waiting.order == []
    os.close(asleep)
    assert waiting.all_had_it() == ["came later"]
    assert lock.acquire(0)


def queue(database: str, told: str) -> int:
    """Wait for a turn in this process and have it."""
    _ours[:] = [FileLock(Path(database), 1)]
    Path(told).touch()
    assert _ours[0].acquire(FOR_EVER_S)
    _ours[0].release(None)
    return os.getpid()


def child_that_waits(database: Path, watch: FileLock) -> Children:
    before, running = places(watch), Children(1)
    running._pipes[0].send((queue, (str(database), str(database.parent / "comes"))))
    until(lambda: places(watch) > before, "the process has a place")
    return running


def test_who_is_killed_while_it_waits_holds_nobody_up(database: Path, lock: FileLock) -> None:
    waiting = Waiting(database, lock)
    assert lock.acquire(FOR_EVER_S)
    child = child_that_waits(database, lock)
    waiting.come("behind it")
    os.kill(child.processes[0].pid, signal.SIGKILL)
    child.end()
    lock.release(None)
    assert waiting.all_had_it() == ["behind it"]


def stop(process: int) -> None:
    """Stop it, and come back once it is: until then it may still be given what it waits for."""
    os.kill(process, signal.SIGSTOP)
    threads = Path(f"/proc/{process}/task")

    def all_are() -> bool:
        states = [(thread / "stat").read_text().rpartition(")")[2] for thread in threads.iterdir()]
        return all(state.split()[0] == "T" for state in states)

    until(all_are, "the process has stopped")


def test_who_is_stopped_while_it_waits_is_passed_once_and_comes_to_its_turn(
    database: Path, lock: FileLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_turns, "_LOOK_S", 0.05)
    waiting = Waiting(database, lock)
    assert lock.acquire(FOR_EVER_S)
    stopped = [child_that_waits(database, lock) for _ in range(2)]
    waiting.come("behind them")
    for child in stopped:
        stop(child.processes[0].pid)
    lock.release(None)
    try:
        assert waiting.all_had_it() == ["behind them"]
        assert lock.acquire(FOR_EVER_S)  # finds out for itself who is stopped
        lock.release(None)
        monkeypatch.setattr(file_turns, "_LOOK_S", FOR_EVER_S)
        for _ in range(3):  # now it knows, and does not wait to see
            assert lock.acquire(FOR_EVER_S)
            lock.release(None)
        assert lock.acquire(FOR_EVER_S)
    finally:
        for child in stopped:
            os.kill(child.processes[0].pid, signal.SIGCONT)
    waiting.come("later")
    lock.release(None)
    for child in stopped:
        assert child._pipes[0].recv() == child.processes[0].pid
        child.end()
    assert waiting.all_had_it() == ["behind them", "later"]
    until(lambda: lock.acquire(0), "nobody waits any more", cpu_s=20)


def test_who_is_interrupted_leaves_neither_turn_nor_place(database: Path, lock: FileLock) -> None:
    other = FileLock(database, 1)

    class Interrupted:
        def waits(self, neighbours: turns.Neighbours) -> None:
            assert neighbours is lock

        def is_next(self, neighbours: turns.Neighbours) -> None:
            raise KeyboardInterrupt

    assert other.acquire(0)
    with pytest.raises(KeyboardInterrupt):
        lock.acquire(FOR_EVER_S, Interrupted())
    assert not other.are_waiting(), "neither a place nor what is before it is held"
    other.release(None)
    assert lock.acquire(0)
    other.close()


def test_patience_is_for_a_turn_not_for_the_queue(lock: FileLock) -> None:
    patience = _Patience(0.1)
    assert lock.acquire(0)
    other = os.open(lock._path, os.O_RDWR)
    assert patience.lasts(other)
    time.sleep(0.15)
    lock.release(7)
    assert lock.acquire(0)
    assert patience.lasts(other), "another turn is under way by now"
    time.sleep(0.15)
    assert not patience.lasts(other)
    assert patience.over and not patience.idle
    os.close(other)


def test_there_are_no_turns_where_two_looks_see_none(lock: FileLock) -> None:
    patience = _Patience(FOR_EVER_S)
    assert lock.acquire(0)
    lock.release(7)
    file = os.open(lock._path, os.O_RDWR)
    assert patience.lasts(file) and not patience.idle
    assert lock.acquire(0)
    lock.release(8)
    assert patience.lasts(file) and not patience.idle, "one ended between the looks"
    assert patience.lasts(file) and patience.idle
    assert lock.acquire(0)
    assert patience.lasts(file) and not patience.idle
    os.close(file)


def take_turns(database: str, count: int) -> list[int]:
    """When this process's turns began and ended, where locks belong to processes."""
    for name in ("_SET", "_SET_WAITING", "_GET"):
        setattr(byte_locks, name, None)
    lock, moments = FileLock(Path(database), 1), []
    for _ in range(count):
        assert lock.acquire(FOR_EVER_S)
        moments += [time.monotonic_ns()]
        time.sleep(0.001)
        moments += [time.monotonic_ns()]
        lock.release(None)
    lock.close()
    return moments


def test_processes_have_turns_where_locks_belong_to_processes(database: Path) -> None:
    running = Children(3)
    try:
        moments = running.run(take_turns, *[(str(database), 40)] * 3)
    finally:
        running.end()
    turns = sorted(
        (began, ended, who)
        for who, own in enumerate(moments)
        for began, ended in zip(own[::2], own[1::2], strict=True)
    )
    assert len(turns) == 120
    assert all(one[1] <= later[0] for one, later in itertools.pairwise(turns))
    left = min(max(at for at, turn in enumerate(turns) if turn[2] == who) for who in range(3))
    came = max(min(at for at, turn in enumerate(turns) if turn[2] == who) for who in range(3))
    shares = [sum(turn[2] == who for turn in turns[came:left]) for who in range(3)]
    assert min(shares) >= max(shares) / 2, shares
