"""Ctrl-C at any step: what was under way is whole or was not begun, and all goes on afterwards."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

from weightledger import IncrementalUpdateRequest, InplaceEngine, Ledger, TorchEngine
from weightledger.ledger import interrupts
from weightledger.ledger.errors import StorageError
from weightledger.ledger.log import Log

PACKAGE = str(Path(interrupts.__file__).parent)


class Interrupted(BaseException):
    """What the handler of these tests raises, as Python's own raises KeyboardInterrupt."""


@pytest.fixture(autouse=True)
def handler() -> Iterator[Callable[..., None]]:
    def handle(_signum: int, _frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGINT, handle)
    yield handle
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_a_signal_is_handled_when_the_block_ends(handler: Callable[..., None]) -> None:
    done = []
    with pytest.raises(Interrupted), interrupts.held:
        with interrupts.held:
            interrupt()
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_the_block_raises_is_told_with_it() -> None:
    with pytest.raises(Interrupted) as raised, interrupts.held:
        interrupt()
        raise ValueError("of the block")
    assert isinstance(raised.value.__context__, ValueError)


def test_it_is_handled_within_where_the_block_allows_it() -> None:
    done = []
    with interrupts.held:
        with pytest.raises(Interrupted), interrupts.let_through():
            done.append("inside")
            interrupt()
            done.append("never")
        with pytest.raises(Interrupted):
            interrupt()
            interrupts.handle()
        interrupt()
        with pytest.raises(Interrupted), interrupts.let_through():
            done.append("never")
    assert done == ["inside"]


def test_handlers_that_raise_nothing_run_once_and_those_of_others_stay(
    handler: Callable[..., None],
) -> None:
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda signum, _frame: came.append(signum))
    with interrupts.held:
        interrupt()
        interrupt()
        assert came == []
    assert came == [signal.SIGINT]
    with interrupts.held:
        signal.signal(signal.SIGINT, handler)  # as the code of a block may
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_time_limit_by_an_alarm_is_held_back_as_well() -> None:
    def out_of_time(_signum: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, out_of_time)
    try:
        done = False
        with pytest.raises(TimeoutError), interrupts.held:
            signal.raise_signal(signal.SIGALRM)
            done = True
        assert done
    finally:
        signal.signal(signal.SIGALRM, before)


def test_each_of_several_that_came_has_its_handler_run() -> None:
    """The second one came with the next write, if there was one: what raises is not the last."""
    came: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        came.append(signum)
        raise Interrupted

    both = (signal.SIGINT, signal.SIGALRM)
    before = [signal.signal(signum, note) for signum in both]
    try:
        with pytest.raises(Interrupted), interrupts.held:
            for signum in both:
                signal.raise_signal(signum)
        assert sorted(came) == sorted(both)
    finally:
        for signum, handler in zip(both, before, strict=True):
            signal.signal(signum, handler)


def test_whoever_put_a_handler_aside_within_the_block_puts_that_handler_back() -> None:
    """Ctrl-C was dead from then on: what was put back noted it, and nobody looked."""
    with interrupts.held:
        aside = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGINT, aside)
    with pytest.raises(Interrupted):
        interrupt()
    with interrupts.held:
        pass
    with pytest.raises(Interrupted):
        interrupt()


def test_a_handler_that_calls_the_one_before_it_may_be_installed_within_the_block() -> None:
    """It was noted instead of handled, and the next block never ended."""
    came: list[str] = []
    with interrupts.held:
        before: Any = signal.getsignal(signal.SIGINT)

        def chained(signum: int, frame: FrameType | None) -> None:
            came.append("chained")
            before(signum, frame)

        signal.signal(signal.SIGINT, chained)
    with pytest.raises(Interrupted):
        interrupt()
    with pytest.raises(Interrupted), interrupts.held:
        interrupt()
        assert came == ["chained"]
    assert came == ["chained"] * 2


def test_what_is_let_through_as_it_comes_leaves_the_rest_of_the_block_held() -> None:
    done = False
    with pytest.raises(Interrupted), interrupts.held:
        interrupt()
        with suppress(Interrupted), interrupts.let_through():
            pytest.fail("it is handled as the block begins")
        interrupt()
        done = True
    assert done


def test_a_block_whose_inner_one_was_interrupted_as_it_ended_leaves_the_next_one_whole(
    handler: Callable[..., None],
) -> None:
    """Nothing was held back any more: blocks were counted that had not begun."""
    interruption = Interruption(1, "__exit__")
    with suppress(Interrupted), interruption, interrupts.held, interrupts.let_through():
        pass
    done = False
    with pytest.raises(Interrupted), interrupts.held:
        interrupt()
        done = True
    assert done
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_fork_holds_nothing_back_of_what_its_parent_was_at() -> None:
    """The thread that would have let go of it is not there: Ctrl-C was dead in the fork."""

    def in_fork() -> None:
        child = os.fork()
        if not child:
            came = False
            try:
                interrupt()
            except Interrupted:
                came = True
            os._exit(0 if came else 1)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    ended: list[int] = []
    with interrupts.held:
        thread = threading.Thread(target=in_fork)
        thread.start()
        thread.join()
        in_fork()
    assert ended == [0, 0]


def test_other_threads_change_nothing(handler: Callable[..., None]) -> None:
    seen = []

    def look() -> None:
        with interrupts.held, interrupts.let_through():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [handler]


def test_a_thread_that_is_only_taken_for_the_main_one_is_not_held_back() -> None:
    """Each write was a ValueError where `threading` was first imported in a thread."""
    program = """
import _thread, sys
assert "threading" not in sys.modules
over = _thread.allocate_lock()
over.acquire()
def work():
    try:
        from weightledger.ledger import interrupts
        with interrupts.held, interrupts.let_through():
            print("done", flush=True)
    finally:
        over.release()
_thread.start_new_thread(work, ())
over.acquire()
"""
    # Without `site`, which may import it.
    found = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.stdout, found.returncode) == ("done\n", 0), found.stderr


def test_who_waits_for_another_thread_can_be_interrupted_and_leaves_nothing_behind(
    sqlite_url: str,
) -> None:
    """What was queued would have been carried out with somebody's next write."""
    with Ledger.open(sqlite_url) as ledger:
        log = ledger.model("m", base={"w": torch.zeros(2)})
        log.apply(IncrementalUpdateRequest("w", 0.0, learning_rate=1.0))
        has, let_go = threading.Event(), threading.Event()

        def hold() -> None:
            with log._writer.lock:
                has.set()
                let_go.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        has.wait()
        threading.Timer(0.2, interrupt_main).start()
        with pytest.raises(Interrupted):
            log.apply(IncrementalUpdateRequest("w", 1.0, learning_rate=1.0))
        let_go.set()
        thread.join()
        assert log.apply(IncrementalUpdateRequest("w", 2.0, learning_rate=1.0)).seq == 2
        assert log.state()["w"].tolist() == [2.0, 2.0]


def test_who_waits_for_another_process_writes_nothing_once_interrupted(sqlite_url: str) -> None:
    """It stayed in the queue, and was carried out with the next write."""
    with Ledger.open(sqlite_url) as ledger, Ledger.open(sqlite_url) as beside:
        log = ledger.model("m", base={"w": torch.zeros(2)})
        other = beside.model("m")
        log.apply(IncrementalUpdateRequest("w", 0.0, learning_rate=1.0))
        other.apply(IncrementalUpdateRequest("w", 0.0, learning_rate=1.0))
        has, let_go = threading.Event(), threading.Event()

        def hold() -> None:
            with other._writer._history.store.turn():
                has.set()
                let_go.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        has.wait()
        timer = threading.Timer(0.2, interrupt_main)
        timer.start()
        try:
            with pytest.raises(Interrupted):
                log.apply(IncrementalUpdateRequest("w", 1.0, learning_rate=1.0))
        finally:
            let_go.set()
            thread.join()
        assert log.apply(IncrementalUpdateRequest("w", 2.0, learning_rate=1.0)).seq == 3
        assert log.state()["w"].tolist() == [2.0, 2.0]


def test_who_waits_for_another_thread_to_commit_is_interrupted_soon(sqlite_url: str) -> None:
    """Ctrl-C was heard of when the wait was over, after ten seconds."""
    with Ledger.open(sqlite_url) as ledger:
        ledger.model("m", base={"w": torch.zeros(2)})
        database = ledger.store._database
        has, let_go = threading.Event(), threading.Event()

        def hold() -> None:
            with database.write():
                has.set()
                let_go.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        has.wait()
        threading.Timer(0.1, interrupt_main).start()
        began = time.monotonic()
        try:
            with pytest.raises(Interrupted), database.write():
                pytest.fail("it was another's turn")
        finally:
            let_go.set()
            thread.join()
        assert time.monotonic() - began < 5
        with database.write():
            pass


def test_a_large_record_is_given_up_between_two_tensors(sqlite_url: str) -> None:
    """Of a model of many GiB Ctrl-C was heard of when all of it was recorded."""
    with Ledger.open(sqlite_url) as ledger:
        log = ledger.model("m", base={name: torch.zeros(1 << 17) for name in "abc"})
        changed = {name: tensor + 1 for name, tensor in log.state().items()}
        with pytest.raises(Interrupted), Interruption(1, "_recorded"):
            log.record(changed)
        assert log.events(limit=1)[0].seq == 0
        assert log.record(changed).seq == 1


def interrupt_main() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


class Interruption:
    """Sends the signal at the n-th line of the package's code that runs in its block, or of what
    there has a name."""

    def __init__(self, at: int, name: str | None = None) -> None:
        self._left = at
        self._name = name

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or code.co_name == "__del__":
            return None  # Python itself ignores what is raised as an object goes
        if event == "line" and self._name in (None, code.co_name):
            self._left -= 1
            if self._left == 0:
                sys.settrace(None)
                interrupt()
                return None
        return self._trace

    def __enter__(self) -> "Interruption":
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    @property
    def came(self) -> bool:
        return self._left <= 0


UPDATE = IncrementalUpdateRequest("bias", torch.ones(4), learning_rate=1.0)
WHOLE = IncrementalUpdateRequest("weight", torch.ones(4, 4), learning_rate=1.0)


def lease(log: Log) -> None:
    with log.engine.lease() as live:
        live.module(torch.ones(4))


def beside(log: Log) -> None:
    """What a trial does as it starts: take up a version of another state."""
    log.projector.held(log.history, log.events(limit=1)[0].seq - 1)


WAYS: dict[str, Callable[[Log], object]] = {
    "an update": lambda log: log.apply(UPDATE),
    "a large one": lambda log: log.apply(WHOLE),
    "a rollback": lambda log: log.rollback(f"seq:{log.events(limit=1)[0].seq - 1}"),
    "a version": lambda log: log.create_version("now"),
    "following": lambda log: log.catch_up(),
    "a read": lambda log: (log.events(limit=3), log.state("head")),
    "a lease": lease,
}

LONGER: dict[str, Callable[[Log], object]] = {
    "a record": lambda log: log.record({name: tensor + 1 for name, tensor in log.state().items()}),
    "a sweep": lambda log: log.gc(dry_run=False),
}


def lines_of(work: Callable[[], object]) -> int:
    """How many lines of the package's code that runs."""
    counting = Interruption(1 << 60)
    with counting:
        work()
    return (1 << 60) - counting._left


def held_up(log: Log, other: Log, way: Callable[[Log], object], step: int) -> int:
    """Interrupt that way at every so many lines; the number of interruptions."""
    other.apply(UPDATE)
    lines = lines_of(lambda: way(log))
    interrupted = 0
    for at in range(1 + step // 2, lines, step):
        other.apply(UPDATE)
        interruption = Interruption(at)
        with suppress(Interrupted), interruption:
            way(log)
        interrupted += interruption.came
        # Nobody is in anybody's way, and what is shown is what is recorded.
        seq = other.apply(UPDATE).seq
        assert log.apply(UPDATE).seq == seq + 1, at
        state = log.state("head")
        assert all(torch.equal(log.engine.tensor(name), state[name]) for name in state), at
    return interrupted


@pytest.fixture
def logs(engine: type[TorchEngine | InplaceEngine], database_url: str) -> Iterator[tuple[Log, Log]]:
    """A log with an engine, and the same over connections of its own."""
    with Ledger.open(database_url) as ledger, Ledger.open(database_url) as beside:
        log = ledger.model("m", engine=engine(nn.Linear(4, 4)))
        other = beside.model("m")
        for one in (log, other) * 3:  # so that all is there that is made by the first
            one.apply(UPDATE)
        yield log, other


@pytest.mark.parametrize("engine", [TorchEngine])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_all_goes_on_after_an_interruption_at_any_line(
    logs: tuple[Log, Log], way: Callable[[Log], object]
) -> None:
    """A lock stayed taken or a transaction open, so that nobody could write any more; a statement
    was prepared twice; weights were shown that the ledger did not know of."""
    assert held_up(*logs, way, 61) > 0


@pytest.mark.parametrize("engine", [InplaceEngine])
@pytest.mark.parametrize("way", [WAYS["an update"], lease], ids=["an update", "a lease"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_nor_does_a_lease_that_is_interrupted_keep_others_out(
    logs: tuple[Log, Log], way: Callable[[Log], object]
) -> None:
    """It stayed inside for ever where the interruption came as it was to leave."""
    assert held_up(*logs, way, 7) > 0


@pytest.mark.parametrize("engine", [TorchEngine])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_nor_is_another_state_shown_while_a_version_is_held_beside_the_live_one(
    logs: tuple[Log, Log],
) -> None:
    """It is live for a moment, and stayed so."""
    log, _ = logs
    log.catch_up()
    for at in range(1, 60):
        with suppress(Interrupted), Interruption(at, "publish"):
            beside(log)
        state = log.state("head")
        assert all(torch.equal(log.engine.tensor(name), state[name]) for name in state), at


def test_a_ledger_that_is_interrupted_as_it_closes_is_closed(sqlite_url: str) -> None:
    """It kept its connections where the threads were waited for in vain."""
    ledger = Ledger.open(sqlite_url)
    with pytest.raises(Interrupted), Interruption(2, "close"):
        ledger.close()
    with pytest.raises(StorageError):
        ledger.models()


@pytest.mark.soak
@pytest.mark.parametrize("engine", [TorchEngine, InplaceEngine])
@pytest.mark.parametrize("way", [*WAYS.values(), *LONGER.values()], ids=[*WAYS, *LONGER])
def test_and_so_it_is_at_every_line(logs: tuple[Log, Log], way: Callable[[Log], object]) -> None:
    assert held_up(*logs, way, 1) > 0
