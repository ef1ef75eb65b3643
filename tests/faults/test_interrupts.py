"""Ctrl-C at any step: what was under way is whole or was not begun, and all goes on afterwards."""

import signal
import sys
import threading
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


def test_other_threads_change_nothing(handler: Callable[..., None]) -> None:
    seen = []

    def look() -> None:
        with interrupts.held, interrupts.let_through():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [handler]


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


def interrupt_main() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


class Interruption:
    """Sends the signal at the n-th line of the package's code that runs in its block."""

    def __init__(self, at: int) -> None:
        self._left = at

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or code.co_name == "__del__":
            return None  # Python itself ignores what is raised as an object goes
        if event == "line":
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


WAYS: dict[str, Callable[[Log], object]] = {
    "an update": lambda log: log.apply(UPDATE),
    "a large one": lambda log: log.apply(WHOLE),
    "a rollback": lambda log: log.rollback(f"seq:{log.events(limit=1)[0].seq - 1}"),
    "a version": lambda log: log.create_version("now"),
    "following": lambda log: log.catch_up(),
    "a read": lambda log: (log.events(limit=3), log.state("head")),
    "a lease": lease,
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


@pytest.mark.soak
@pytest.mark.parametrize("engine", [TorchEngine, InplaceEngine])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_and_so_it_is_at_every_line(logs: tuple[Log, Log], way: Callable[[Log], object]) -> None:
    assert held_up(*logs, way, 1) > 0
