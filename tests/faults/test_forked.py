"""A fork of a process that has a ledger open: it is told so, and harms nobody."""

import asyncio
import copy
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch

from tests.faults.children import Children
from tests.forked import forking
from tests.waiting import PATIENCE_S, until
from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    Ledger,
    TorchEngine,
)
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import LedgerError

MODEL = "m"
BASE = {"w": torch.zeros(4)}
REQUEST = IncrementalUpdateRequest("w", 1.0, learning_rate=1.0)
BIAS = IncrementalUpdateRequest("bias", 1.0, learning_rate=1.0)


def in_fork(work: Callable[[], str]) -> str:
    """What this gives in a fork of this process."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(PATIENCE_S))  # rather than wait for a thread that did not come along
        try:
            os.write(into, work().encode())
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as told:
        said = told.read().decode()
    os.waitpid(pid, 0)
    return said


def refusals(uses: dict[str, Callable[[], object]]) -> str:
    """The names of those uses that are refused as they should be, and what else came of others."""
    outcomes = []
    for name, use in uses.items():
        try:
            outcomes.append(f"{name} gave {use()!r}")
        except LedgerError as error:
            told = "is a fork of: open it here" in str(error)
            outcomes.append(name if told else f"{name} said {error}")
        except BaseException as error:
            outcomes.append(f"{name} raised {error!r}")
    return "\n".join(outcomes)


def use_in_fork(url: str) -> tuple[bool, str]:
    """Have a fork use what its parent has open, while a thread of the parent writes; go on."""
    torch.set_num_threads(1)
    ledger = Ledger.open(url)
    log = ledger.model(MODEL, base=BASE)
    engine = TorchEngine(torch.nn.Linear(2, 2))
    manager = DynamicModelManager(engine, "other", config=DynamicUpdateConfig(database_url=url))
    asyncio.run(manager.update(BIAS))
    log.apply(REQUEST)
    held, over = threading.Event(), threading.Event()

    journal = log.history.store._database._journal

    def hold() -> None:
        with log._writer.lock, journal.writing(PATIENCE_S) if journal else nullcontext():
            held.set()
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    uses: dict[str, Callable[[], object]] = {
        "apply": lambda: log.apply(REQUEST),
        "record": lambda: log.record({"w": torch.ones(4)}),
        "catch up": log.catch_up,
        "read": lambda: log.history.events(limit=1),
        "models": ledger.models,
        "key": lambda: ledger.keys.create("k"),
        "update": lambda: asyncio.run(manager.update(BIAS)),
        "keep up": lambda: asyncio.run(manager.catch_up()),
    }

    def work() -> str:
        with manager.lease() as live:
            shown = live.module.bias.tolist()
        said = refusals(uses)
        manager.close()
        ledger.close()
        return f"{said}\n{shown}"

    with manager.lease() as live:
        shown = live.module.bias.tolist()
    said = in_fork(work)
    over.set()
    holder.join()
    for _ in range(20):
        log.apply(REQUEST)
    asyncio.run(manager.update(BIAS))
    manager.close()
    ledger.close()
    return said == "\n".join([*uses, str(shown)]), said


def die_in_a_transaction(url: str, file: str) -> None:
    """Leave a fork that goes on, and be killed while holding every lock that a writer takes."""
    log = Ledger.open(url).model(MODEL)
    store = log.history.store
    with store.turn(), store._database.write():
        pass  # its files and connections are open
    if os.fork() == 0:
        until(Path(f"{file}-over").exists)
        os._exit(0)
    with store.turn(), store._database.write():
        Path(file).write_text("in a transaction")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def child() -> Iterator[Children]:
    children = Children(1)
    yield children
    children.end()


def test_a_fork_is_told_to_open_the_ledger_itself(database_url: str, child: Children) -> None:
    assert child.run(use_in_fork, (database_url,)) == [(True, ANY)]
    with Ledger.open(database_url) as ledger:
        log = ledger.model(MODEL)
        assert log.history.head().seq == 21
        assert verify(log.history).problem is None


def test_locks_go_with_who_took_them_though_a_fork_lives_on(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Ledger.open(database_url) as ledger:
        log = ledger.model(MODEL, base=BASE)
        file = tmp_path / "held"
        try:
            # Not of `Children`: the fork keeps their pipes open.
            holder = forking().Process(target=die_in_a_transaction, args=(database_url, str(file)))
            holder.start()
            holder.join(PATIENCE_S)
            assert holder.exitcode == -signal.SIGKILL
            assert file.exists()
            assert log.apply(REQUEST).seq == 1  # StorageBusy after ten seconds, were they held
            assert "going on without waiting" not in caplog.text
        finally:
            Path(f"{file}-over").touch()


def test_what_belongs_to_a_process_is_neither_copied_nor_pickled(tmp_path: Path) -> None:
    """A process that is started, not forked, gets what it is given by pickling."""
    with Ledger.open(f"sqlite:///{tmp_path}/l.db") as ledger:
        log = ledger.model(MODEL, base=BASE)
        manager = DynamicModelManager(
            TorchEngine(torch.nn.Linear(2, 1)), "other", ledger=ledger, config=DynamicUpdateConfig()
        )
        for one in (ledger, log, manager):
            for make in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match=f"a {type(one).__name__} belongs to") as told:
                    make(one)
                assert "open it there" in str(told.value)
        log.apply(REQUEST)
