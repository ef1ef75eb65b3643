"""Writers of one model in several processes: equal, never refused, and never held up for ever."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.faults.children import Children
from tests.waiting import until
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.codecs.warming import warm_few
from weightledger.ledger.errors import StorageBusy
from weightledger.ledger.events import UPDATED, Event
from weightledger.ledger.sql import turns
from weightledger.ledger.sql.file_turns import FileLock
from weightledger.ledger.sql.machine_turns import MachineLock
from weightledger.ledger.store import EventFilter
from weightledger.ledger.store.attached import Append
from weightledger.ledger.writing import append_loop, arithmetic

MODEL = "m"
WRITERS, EACH = 8, 120
FAIR = 0.5  # on a busy machine; `benchmarks.writers` holds a quiet one to 0.8

SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
POSTGRES = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

_ours: list[Log] = []  # in a child: its log, from one piece of work to the next


def request(actor: str) -> IncrementalUpdateRequest:
    return IncrementalUpdateRequest("w", 1.0, learning_rate=1.0, actor=actor)


def take_up(url: str) -> int:
    torch.set_num_threads(1)
    _ours[:] = [Ledger.open(url).model(MODEL)]
    # What the first update imports, so that all begin when they are told to.
    warm_few()
    arithmetic.warm()
    return os.getpid()


def write(actor: str, count: int) -> int:
    for _ in range(count):
        _ours[0].apply(request(actor))
    return count


def stop_in_turn(file: str) -> int:
    """Take a turn, say so, and be stopped from outside; then write."""
    with _ours[0].history.store.turn():
        Path(file).touch()
        until(Path(f"{file}-go").exists)
    return write("stopped", 1)


def has_its_turn(log: Log) -> bool:
    with log.history.store.turn():
        return not log.history.store._turnstile._stuck


@pytest.fixture
def log(database_url: str) -> Iterator[Log]:
    with Ledger.open(database_url) as ledger:
        yield ledger.model(MODEL, base={"w": torch.zeros(16, 16)})


def children(count: int, url: str) -> tuple[Children, list[int]]:
    started = Children(count)
    return started, started.run(take_up, *[(url,)] * count)


def test_eight_writing_processes_are_equal_and_none_is_refused(database_url: str, log: Log) -> None:
    running, _ = children(WRITERS, database_url)
    try:
        done = running.run(write, *[(f"writer {number}", EACH) for number in range(WRITERS)])
    finally:
        running.end()
    assert done == [EACH] * WRITERS
    order = [
        log.history.store.annotation(event.seq).actor
        for event in log.history.events(EventFilter(kinds=[UPDATED]), newest_first=False)
    ]
    assert Counter(order) == {f"writer {number}": EACH for number in range(WRITERS)}
    # From when the last one came until the first one left, all of them wrote.
    came = max(order.index(actor) for actor in set(order))
    left = min(len(order) - order[::-1].index(actor) for actor in set(order))
    assert left - came > WRITERS * EACH // 4, "they did not write at the same time"
    counts = Counter(order[came:left])
    assert min(counts.values()) >= FAIR * max(counts.values()), counts
    log.catch_up()
    assert torch.equal(log.state()["w"], torch.full((16, 16), float(WRITERS * EACH)))
    assert verify(log.history).problem is None


def test_a_writer_killed_in_its_turn_holds_nobody_up(
    database_url: str, log: Log, tmp_path: Path
) -> None:
    running, (pid,) = children(1, database_url)
    running._pipes[0].send((stop_in_turn, (str(tmp_path / "in-turn"),)))
    until((tmp_path / "in-turn").exists)
    os.kill(pid, signal.SIGKILL)
    running.end()
    log.apply(request("other"))
    assert log.history.store._turnstile._stuck is False  # it had its turn


def test_a_writer_stopped_in_its_turn_is_not_waited_for_for_ever(
    database_url: str, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 0.2)
    running, (pid,) = children(1, database_url)
    running._pipes[0].send((stop_in_turn, (str(tmp_path / "in-turn"),)))
    until((tmp_path / "in-turn").exists)
    os.kill(pid, signal.SIGSTOP)
    turnstile = log.history.store._turnstile
    for number in range(3):  # the first one waits, the others only try
        log.apply(request(f"other {number}"))
        assert turnstile._stuck
    os.kill(pid, signal.SIGCONT)
    (tmp_path / "in-turn-go").touch()
    assert running._pipes[0].recv() == 1
    running.end()
    until(lambda: has_its_turn(log))  # the end of the other's may be on its way to the database
    log.apply(request("last"))
    assert not turnstile._stuck
    assert log.history.head().counts.applied == 5
    assert verify(log.history).problem is None


def test_once_a_stuck_turn_has_ended_writers_queue_again(
    database_url: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever went round it would not find the lock free by trying: others queue for it."""
    monkeypatch.setattr(turns, "PATIENCE_S", 0.2)
    with Ledger.open(database_url) as elsewhere, Ledger.open(database_url) as another:
        slow, other = elsewhere.model(MODEL), another.model(MODEL)
        with slow.history.store.turn():
            while not log.history.store._turnstile._stuck:
                log.apply(request("round it"))
        monkeypatch.setattr(turns, "PATIENCE_S", 600.0)
        late = threading.Thread(target=log.apply, args=(request("late"),))
        with other.history.store.turn() as turn:
            assert turn.held
            late.start()
            waits = "the other's turn is waited for"
            until(lambda: is_waited_for(other) or not late.is_alive(), waits, cpu_s=20)
            other.apply(request("first"))
        late.join()
        newest = log.history.events(limit=2)
        assert [log.history.store.annotation(one.seq).actor for one in newest] == ["late", "first"]
        assert not log.history.store._turnstile._stuck
        assert verify(log.history).problem is None


def test_a_stuck_turn_is_gone_round_though_others_write_past_it(
    database_url: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL the log that moves under it does not mean that turns do."""
    monkeypatch.setattr(turns, "PATIENCE_S", 0.2)
    with Ledger.open(database_url) as elsewhere, Ledger.open(database_url) as another:
        slow, other = elsewhere.model(MODEL), another.model(MODEL)
        other.history.store._turnstile._stuck = True
        with slow.history.store.turn():
            store = log.history.store
            other.history.store._turnstile._stuck_in = lock_of(other).under_way()
            acquire = store._turnstile._lock.acquire

            def meets_others(*asked: object) -> bool:
                other.apply(request("past it"))
                assert len(log.history.events(limit=20)) < 20, "it waits for ever"
                return acquire(*asked)

            monkeypatch.setattr(store._turnstile._lock, "acquire", meets_others)
            with store.turn() as turn:
                assert not turn.held
        assert verify(log.history).problem is None


def lock_of(log: Log) -> turns.Lock:
    return log.history.store._turnstile._lock


def is_waited_for(log: Log) -> bool:
    """Whether somebody waits for the turn that this writer has."""
    lock = lock_of(log)
    near = lock._near if isinstance(lock, MachineLock) else lock
    assert isinstance(near, FileLock)
    return near.are_waiting()


def test_a_write_that_always_loses_may_be_sent_again(
    database_url: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused as the database's being busy is: it contradicts nothing."""
    monkeypatch.setattr(turns, "PATIENCE_S", 0.2)
    monkeypatch.setattr(append_loop, "_PATIENCE_S", 0.0)
    with Ledger.open(database_url) as elsewhere:
        other, append = elsewhere.model(MODEL), log.history.store.append

        def late(*items: Append) -> None:
            other.apply(request("other"))
            append(*items)

        monkeypatch.setattr(log.history.store, "append", late)
        with pytest.raises(StorageBusy, match="other writers won 10 times"):
            log.apply(request("loses"))


def test_where_files_cannot_be_locked_writers_go_without_turns(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    Path(sqlite_url.removeprefix("sqlite:///") + "-turns").write_text("in the way")
    with Ledger.open(sqlite_url) as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(4)})
        log.apply(request("one"))
        assert log.history.head().counts.applied == 1
    assert "go without turns" in caplog.text


def test_a_turn_within_a_turn_is_the_same(log: Log) -> None:
    with log.history.store.turn() as outer:
        log.apply(request("within"))
        with log.history.store.turn() as inner:
            assert inner is outer
        assert outer.head == log.history.head().seq


def test_a_turn_is_over_as_soon_as_the_event_is_durable(
    database_url: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(database_url) as elsewhere:
        lock = elsewhere.model(MODEL).history.store._turnstile._lock
        show = log.projector.show
        free: list[bool] = []

        def showing(*changes: object) -> None:
            free.append(lock.acquire(5))
            lock.release(None)
            show(*changes)

        monkeypatch.setattr(log.projector, "show", showing)
        log.apply(request("one"))
        assert free == [True]


@SQLITE
def test_who_is_next_shows_meanwhile_what_was_written(
    database_url: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 600.0)  # it goes on only once the turn is its own
    with Ledger.open(database_url) as elsewhere:
        other = elsewhere.model(MODEL)
        late = threading.Thread(target=log.apply, args=(request("late"),))
        with other.history.store.turn():
            first = other.apply(request("first"))
            late.start()
            until(lambda: log.live.head.seq == first.seq, "it is shown", cpu_s=20)
            assert other.history.head().seq == first.seq, "before its own turn has come"
        late.join()
        assert other.history.head().seq == first.seq + 1
        assert torch.equal(log.state()["w"], torch.full((16, 16), 2.0))


@SQLITE
def test_what_is_written_because_of_what_is_shown_meanwhile_waits_for_no_turn(
    database_url: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 600.0)

    def answer(_event: Event) -> None:
        if not answered:
            answered.append(log.apply(request("answer")))

    answered: list[Event] = []
    log.projector.subscribe(answer)
    with Ledger.open(database_url) as elsewhere:
        other = elsewhere.model(MODEL)
        late = threading.Thread(target=log.apply, args=(request("late"),))
        with other.history.store.turn():
            other.apply(request("first"))
            late.start()
            until(lambda: bool(answered), "it is answered within another's turn", cpu_s=20)
        late.join()
        other.apply(request("last"))
        newest = log.history.events(limit=4)
        actors = [log.history.store.annotation(one.seq).actor for one in newest]
        assert actors == ["last", "late", "answer", "first"]
        assert verify(log.history).problem is None


@POSTGRES
def test_a_lone_writers_statement_takes_the_turn_but_never_anothers(database_url: str) -> None:
    with Ledger.open(database_url) as ledger, Ledger.open(database_url) as elsewhere:
        log = ledger.model(MODEL, base={"w": torch.zeros(16, 16)})
        for _ in range(4):
            log.apply(request("alone"))
        with log.history.store.turn() as turn:
            assert turn.deferred
        other = elsewhere.model(MODEL)
        late = threading.Thread(target=log.apply, args=(request("late"),))
        with other.history.store.turn() as turn:
            assert turn.held
            late.start()
            until(lambda: is_waited_for(other), "it waits for the other's turn", cpu_s=20)
            other.apply(request("first"))
        late.join()
        newest = log.history.events(limit=2)
        assert [log.history.store.annotation(one.seq).actor for one in newest] == ["late", "first"]
        with log.history.store.turn() as turn:
            assert turn.held, "once disturbed it waits for its turns again"
        assert verify(log.history).problem is None


@POSTGRES
def test_what_needs_more_than_one_statement_waits_for_the_turn(database_url: str) -> None:
    with Ledger.open(database_url) as ledger, Ledger.open(database_url) as elsewhere:
        log = ledger.model(MODEL, base={"w": torch.zeros(16, 16)})
        for _ in range(4):
            log.apply(request("alone"))
        other = elsewhere.model(MODEL)
        late = threading.Thread(target=log.create_version, args=("late",))
        with other.history.store.turn():
            late.start()
            until(lambda: is_waited_for(other), "it waits for the other's turn", cpu_s=20)
            other.apply(request("first"))
        late.join()
        kinds = [event.kind for event in log.history.events(limit=3)]
        assert kinds == ["version_created", "version_created", UPDATED]
