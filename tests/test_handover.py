"""Writes that coroutines wait for: one call of the thread and one transaction for all that wait."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    Ledger,
)
from weightledger.ledger.errors import StorageError, Unavailable
from weightledger.ledger.events import Event
from weightledger.ledger.log import Log
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import RollBack
from weightledger.ledger.writing.handover import Handover
from weightledger.ledger.writing.job import Job
from weightledger.ledger.writing.showing import Committed
from weightledger.ledger.writing.update_commands import ApplyUpdates, update_command

MANY = 8


@pytest.fixture
def log(tmp_path) -> Iterator[Log]:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield ledger.model("m", base={"w": torch.zeros(4)})


class Busy:
    """A handover whose thread is at work on something else until it is let go."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.drained = 0
        self.thread = ThreadPoolExecutor(1)
        self._over = threading.Event()
        self.handover = Handover(log.submit, self._drain, self.thread)
        self.thread.submit(self._over.wait)

    def _drain(self) -> None:
        self.drained += 1
        self.log.drain()

    def let_go(self) -> None:
        self._over.set()

    async def carry_out(self, *commands: ApplyUpdates | RollBack) -> list[Event | BaseException]:
        """What becomes of commands of which all are queued before the first is looked at."""
        asked = [asyncio.ensure_future(self.handover.carry_out(one)) for one in commands]
        while self.log.waiting < len(commands):
            await asyncio.sleep(0)
        self.let_go()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        self.thread.shutdown()
        return list(outcomes)


class AtOnce(Executor):
    """A thread that nothing keeps from beginning while it is still being asked."""

    def submit(self, work: Callable[[], None]) -> None:  # type: ignore[override]
        work()


def update(log: Log, value: float = 1.0) -> ApplyUpdates:
    return update_command(IncrementalUpdateRequest("w", value, 1.0), log.specs, log.first_names)


def test_all_that_wait_share_a_transaction_and_a_call_of_the_thread(log: Log) -> None:
    committed: list[Committed] = []
    log.subscribe(committed.append)
    busy = Busy(log)
    outcomes = asyncio.run(busy.carry_out(*[update(log) for _ in range(MANY)]))
    assert [one.seq for one in outcomes if isinstance(one, Event)] == [*range(1, MANY + 1)]
    assert busy.drained == 1
    assert len({one.append_s for one in committed}) == 1
    assert log.state()["w"].tolist() == [MANY] * 4


def test_each_gets_its_own_outcome(log: Log) -> None:
    stale = RollBack("seq:0", Caller(expected_seq=7))
    outcomes = asyncio.run(
        Busy(log).carry_out(update(log), RollBack("no such", Caller()), stale, update(log, 2.0))
    )
    kinds = [type(one).__name__ for one in outcomes]
    assert kinds == ["Event", "NotFound", "PreconditionFailed", "Event"]


def test_who_stops_waiting_leaves_the_others_their_outcomes(log: Log) -> None:
    busy = Busy(log)

    async def ask() -> list[Event]:
        left, stays = (asyncio.ensure_future(busy.handover.carry_out(update(log))) for _ in "ab")
        while log.waiting < 2:
            await asyncio.sleep(0)
        left.cancel()
        busy.let_go()
        event = await stays
        assert left.cancelled()
        return [event]

    assert [one.seq for one in asyncio.run(ask())] == [2]  # what was queued is carried out
    busy.thread.shutdown()


def test_what_keeps_the_thread_from_its_work_is_told_to_all(log: Log, monkeypatch) -> None:
    store = log.history.store

    def no_turn(*_: object) -> None:
        raise StorageError("no turns today")

    with monkeypatch.context() as patched:
        patched.setattr(store, "turn", no_turn)
        outcomes = asyncio.run(Busy(log).carry_out(update(log), update(log)))
    assert [str(one) for one in outcomes] == ["no turns today"] * 2
    assert log.waiting == 0
    assert log.history.head().seq == 0
    assert [one.seq for one in asyncio.run(Busy(log).carry_out(update(log)))] == [1]


def test_an_answer_that_cannot_be_had_leaves_the_others_theirs(log: Log, monkeypatch) -> None:
    attempts = log._writer._attempts
    finish = attempts.finish

    def failing(job: Job, event: Event) -> None:
        if event.seq == 1:
            raise StorageError("written, and its answer cannot be read")
        finish(job, event)

    monkeypatch.setattr(attempts, "finish", failing)
    outcomes = asyncio.run(Busy(log).carry_out(update(log), update(log)))
    assert [type(one).__name__ for one in outcomes] == ["StorageError", "Event"]


def test_a_thread_that_is_gone_says_so_each_time(log: Log) -> None:
    gone = ThreadPoolExecutor(1)
    gone.shutdown()
    handover = Handover(log.submit, log.drain, gone)

    async def ask(count: int) -> list[Event | BaseException]:
        asked = [handover.carry_out(update(log)) for _ in range(count)]
        return await asyncio.gather(*asked, return_exceptions=True)

    for count in (1, 3, 1):
        outcomes = asyncio.run(ask(count))
        assert ["shutdown" in str(one) for one in outcomes] == [True] * count


def test_what_is_handed_over_in_one_turn_of_the_loop_goes_together(log: Log) -> None:
    committed: list[Committed] = []
    log.subscribe(committed.append)
    handover = Handover(log.submit, log.drain, AtOnce())

    async def ask() -> list[Event]:
        return await asyncio.gather(*[handover.carry_out(update(log)) for _ in range(MANY)])

    for _ in range(2):
        assert len(asyncio.run(ask())) == MANY
    assert [one.event.seq for one in committed] == [*range(1, 2 * MANY + 1)]
    assert len({one.append_s for one in committed}) == 2


def test_a_loop_that_ends_before_it_asks_keeps_no_other_from_it(log: Log) -> None:
    with ThreadPoolExecutor(1) as idle:
        handover = Handover(log.submit, log.drain, idle)
        ended = asyncio.new_event_loop()
        step = handover.carry_out(update(log))
        ended.call_soon(step.send, None)
        ended.call_soon(ended.stop)
        ended.run_forever()
        ended.close()
        event = asyncio.run(handover.carry_out(update(log)))
        step.close()
    assert event.seq == 2  # after the one that was queued first


def test_a_manager_that_was_closed_writes_nothing_and_says_so(tmp_path: Path) -> None:
    config = DynamicUpdateConfig(backup_dir=tmp_path)
    manager = DynamicModelManager(torch.nn.Linear(2, 2), "m", config=config)
    manager.close()
    for write in (
        manager.apply_incremental_update(IncrementalUpdateRequest("bias", 1.0)),
        manager.create_version("after"),
        manager.rollback_to_version("v0"),
    ):
        with pytest.raises(Unavailable, match="was closed"):
            asyncio.run(write)
    with Ledger.open(config.url) as ledger:
        assert ledger.model("m").history.store.last_seq() == 0
