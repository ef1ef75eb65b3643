"""Group commit between processes: who waits has its update carried out by whoever has the turn,
once, as it would have done itself, whatever becomes of the other."""

import os
import random
import shutil
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import torch
from msgspec.structs import replace

from tests.faults.children import Children
from tests.faults.places import ALL, QUEUE, places
from tests.waiting import PATIENCE_S, until
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.codecs.warming import warm_few
from weightledger.ledger.errors import (
    CorruptLedger,
    IdempotencyMismatch,
    OutcomeUnknown,
    StorageError,
    Unavailable,
)
from weightledger.ledger.events import UPDATED, Event
from weightledger.ledger.sql import file_turns, groups, postgres, turns
from weightledger.ledger.sql.advisory_turns import AdvisoryLock
from weightledger.ledger.sql.bells import Bells
from weightledger.ledger.sql.boxes import Boxes, Ticket
from weightledger.ledger.sql.file_turns import FileLock
from weightledger.ledger.sql.groups import NO_GROUP, Group, Told, ToldTensor
from weightledger.ledger.sql.machine_turns import MachineLock
from weightledger.ledger.store.append import Appender
from weightledger.ledger.store.attached import Append
from weightledger.ledger.writing import arithmetic, group_commit
from weightledger.ledger.writing.asking import asked, asked_for
from weightledger.ledger.writing.commands import Command
from weightledger.ledger.writing.group_commit import GroupCommit
from weightledger.ledger.writing.job import Job
from weightledger.ledger.writing.policy import ANYTHING_GOES, Policy
from weightledger.ledger.writing.showing import Committed
from weightledger.ledger.writing.update_commands import update_command

MODEL = "m"
FIRST = "first of its process"
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
POSTGRES = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

_ours: list[Log] = []  # in a child: its log, from one piece of work to the next


def request(actor: str, key: str | None = None, by: float = 1.0) -> IncrementalUpdateRequest:
    return IncrementalUpdateRequest(
        "w",
        by,
        learning_rate=1.0,
        actor=actor,
        reason=f"the reason of {actor}",
        metadata={"of": actor},
        idempotency_key=key,
    )


@pytest.fixture(autouse=True)
def turns_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 600.0)


@pytest.fixture
def log(database_url: str) -> Iterator[Log]:
    with Ledger.open(database_url) as ledger:
        made = ledger.model(MODEL, base={"w": torch.zeros(16, 16)})
        made.apply(request(FIRST))  # who has not written leaves nothing to others
        yield made


@pytest.fixture
def other(database_url: str, log: Log) -> Iterator[Log]:
    """Another writer's, as far as turns can tell."""
    with Ledger.open(database_url) as ledger:
        made = ledger.model(MODEL)
        made.apply(request(FIRST))
        yield made


@pytest.fixture
def holder(database_url: str, log: Log) -> Iterator[Log]:
    with Ledger.open(database_url) as ledger:
        yield ledger.model(MODEL)


def near(log: Log) -> FileLock:
    """The lock among the writers of this machine."""
    lock = log.history.store._turnstile._lock
    found = lock._near if isinstance(lock, MachineLock) else lock
    assert isinstance(found, FileLock)
    return found


class Queue:
    """Writes that wait for a turn which is held until `go`: the first of them has the next one."""

    def __init__(self, holder: Log) -> None:
        self._holder = holder
        self._turn: AbstractContextManager[turns.Turn] | None = holder.history.store.turn()
        self._threads: list[threading.Thread] = []
        self.given: dict[str, Event | BaseException] = {}

    def __enter__(self) -> "Queue":
        assert self._turn is not None
        self._turn.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.go()

    def come(self, name: str, write: Callable[[], Event]) -> None:
        def run() -> None:
            try:
                self.given[name] = write()
            except Exception as error:
                self.given[name] = error

        # Nobody who waits in his box goes before the first, who queues.
        stop = ALL if self._threads else QUEUE
        thread, before = threading.Thread(target=run), places(near(self._holder), stop=stop)
        thread.start()
        self._threads.append(thread)
        came = f"{name} has a place"
        until(lambda: places(near(self._holder), stop=stop) > before, came, cpu_s=20)

    def let_go(self) -> None:
        """Let them have their turns."""
        if self._turn is not None:
            self._turn.__exit__(None, None, None)
            self._turn = None

    def go(self) -> None:
        """The same, and wait until all had them."""
        self.let_go()
        for thread in self._threads:
            thread.join()


def transactions(log: Log, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The seqs of each transaction that a log appends from here on."""
    made: list[list[int]] = []
    append = log.history.store.append

    def appending(*items: Append) -> None:
        append(*items)
        made.append([event.seq for event, _, _ in items])

    monkeypatch.setattr(log.history.store, "append", appending)
    return made


def actors(log: Log) -> list[str]:
    events = [event for event in log.history.store.scan() if event.kind == UPDATED]
    words = log.history.store.annotations([event.seq for event in events])
    return [words[event.seq].actor or "" for event in events]


def all_once(log: Log, *expected: str) -> None:
    found = actors(log)
    assert Counter(found) - Counter({FIRST: len(found)}) == Counter(expected)
    log.catch_up()
    assert torch.equal(log.state()["w"], torch.full((16, 16), float(len(found))))
    assert verify(log.history).problem is None


def test_who_has_the_turn_carries_out_what_the_others_wait_for(
    log: Log, other: Log, holder: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_log, of_other = transactions(log, monkeypatch), transactions(other, monkeypatch)
    told: list[Committed] = []
    followed: list[Event] = []
    other.subscribe(told.append)
    log.subscribe(lambda _: None, followed.append)
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        queue.come("waits", lambda: other.apply(request("waits", key="k")))
    first, second = queue.given["leader"], queue.given["waits"]
    assert isinstance(first, Event) and isinstance(second, Event)
    assert of_log == [[first.seq, second.seq]], "one transaction"
    assert of_other == [], "nothing was left to do"
    assert [one.event.seq for one in told] == [second.seq]
    words = log.history.store.annotation(second.seq)
    assert words == told[0].annotation, "its listeners are told as of any write of its own"
    assert (words.actor, words.reason, words.metadata) == (
        "waits",
        "the reason of waits",
        '{"of":"waits"}',
    )
    assert second.seq in [event.seq for event in followed], "to the leader it is another's"
    for one in (log, other):
        assert one.live.head.seq == second.seq, "shown when it is answered"
        assert torch.equal(one.state()["w"], torch.full((16, 16), 4.0))
    assert other.apply(request("waits", key="k")).seq == second.seq, "its key is known"
    all_once(holder, "leader", "waits")


def test_what_is_carried_out_is_told_and_nobody_asks_the_database(
    log: Log, other: Log, holder: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.apply(request("log"))
    other.apply(request("other"))
    log.apply(request("log"))
    other.catch_up()
    other.apply(request("other"))  # now it is in step with what is told
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        queue.come("waits", lambda: other.apply(request("waits")))
        for asks in ("news", "event", "head"):
            monkeypatch.setattr(other.history.store, asks, None)
    monkeypatch.undo()
    assert isinstance(queue.given["waits"], Event), queue.given["waits"]
    all_once(holder, "log", "other", "log", "other", "leader", "waits")


def test_what_is_told_unreadably_is_looked_for_in_the_log(
    log: Log, other: Log, holder: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(events: Sequence[Told]) -> list[Event]:
        raise CorruptLedger(f"{len(events)} events cannot be read")

    monkeypatch.setattr(group_commit, "heard", unreadable)
    appended = transactions(other, monkeypatch)
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        queue.come("waits", lambda: other.apply(request("waits")))
    assert isinstance(queue.given["waits"], Event), queue.given
    assert appended == []
    all_once(holder, "leader", "waits")


def test_who_is_next_does_for_others_though_the_server_is_late(
    log: Log, other: Log, holder: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had a turn and wrote nothing gives it on once the server let go: the next one's
    statement, which asks for it, would be lost, and after that he goes without the others."""
    lock = holder.history.store._turnstile._lock
    if not isinstance(lock, MachineLock):
        pytest.skip("the turn is the file's alone")
    everywhere, release = lock._everywhere, lock._everywhere.release
    late = threading.Timer(0.3, lambda: release(None))

    def settle() -> None:
        late.join()

    def let_go(_head: int | None) -> bool:
        late.start()
        return True

    monkeypatch.setattr(everywhere, "release", let_go)
    monkeypatch.setattr(everywhere, "settle", settle)
    appended = transactions(log, monkeypatch)
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        queue.come("waits", lambda: other.apply(request("waits")))
    late.join()
    assert [len(seqs) for seqs in appended] == [2]
    all_once(holder, "leader", "waits")


def test_who_is_answered_needs_no_turn(
    log: Log, other: Log, holder: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has it all the time from when the leader's ends."""
    appended = transactions(other, monkeypatch)
    ring, rung = near(log)._ring, []

    def ring_when_the_turn_is_anothers() -> None:
        rung.append(near(holder).acquire(0))
        ring()

    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        assert near(log)._queues, "it waited in its box in vain: the next times it does not"
        monkeypatch.setattr(file_turns, "_GLANCES", 10**6)  # it never queues
        queue.come("waits", lambda: other.apply(request("waits")))
        monkeypatch.setattr(near(log), "_ring", ring_when_the_turn_is_anothers)
        queue.go()
    assert rung == [True]
    assert isinstance(queue.given["waits"], Event), queue.given
    assert near(other)._queues == 0, "it was rung for"
    near(holder).release(None)
    assert appended == []
    all_once(holder, "leader", "waits")


def test_who_is_interrupted_when_it_has_its_answer_goes_on(
    log: Log, other: Log, holder: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes_of_other, groups_of_other = near(other)._opened_boxes(), other._writer._groups
    wait = boxes_of_other.wait

    def interrupted(timeout_s: float) -> bool:
        if groups_of_other.answered:
            raise KeyboardInterrupt
        wait(timeout_s)
        return False

    def write() -> Event:
        with pytest.raises(KeyboardInterrupt):
            other.apply(request("waits"))
        monkeypatch.undo()
        return other.apply(request("next"))

    monkeypatch.setattr(boxes_of_other, "wait", interrupted)
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        monkeypatch.setattr(file_turns, "_GLANCES", 10**6)  # it never queues
        queue.come("waits", write)
        queue.go()
    assert isinstance(queue.given["waits"], Event), queue.given
    all_once(holder, "leader", "waits", "next")


def test_who_had_it_done_is_told_whatever_interrupts_what_follows(
    log: Log, other: Log, holder: Log
) -> None:
    """A listener is interrupted, to which the update is another's."""
    armed: list[bool] = []

    def listens(_: Event) -> None:
        if armed:
            armed.clear()
            raise KeyboardInterrupt

    def work_off() -> Event:
        with pytest.raises(KeyboardInterrupt):
            other._writer.drain()
        return other.history.head()

    other.projector.subscribe(listens)
    job = other._writer.submit(update_command(request("waits"), other.specs, other.first_names))
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        armed.append(True)
        queue.come("waits", work_off)
    assert isinstance(queue.given["waits"], Event), queue.given
    assert job.done
    all_once(holder, "leader", "waits")


def test_an_answer_outlasts_the_turns_of_others(
    log: Log, other: Log, holder: Log, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes between appends alone, and tells of that as well."""
    groups_of_other, late = other._writer._groups, []
    look = groups_of_other.look
    with Ledger.open(database_url) as ledger, Queue(holder) as queue:
        between = ledger.model(MODEL)

        def look_late(neighbours: turns.Neighbours) -> bool:
            left = groups_of_other._left
            assert left is not None
            if left.ticket.promised() is not None and not late:
                until(lambda: "leader" in queue.given, "the leader's turn is over", cpu_s=20)
                late.append(between.create_version("between"))
                late.append(between.apply(request("between")))
            return look(neighbours)

        monkeypatch.setattr(groups_of_other, "look", look_late)
        queue.come("leader", lambda: log.apply(request("leader")))
        monkeypatch.setattr(file_turns, "_GLANCES", 10**6)  # it never queues
        queue.come("waits", lambda: other.apply(request("waits")))
        appended = transactions(other, monkeypatch)
        queue.go()
    assert late and appended == []
    all_once(holder, "leader", "waits", "between")


def test_where_nobody_can_ring_who_waits_looks_now_and_then_and_queues(
    log: Log, other: Log, holder: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As between containers that share no folder for what is temporary."""
    monkeypatch.setattr(Bells, "ring", lambda bells, number: None)
    for at_once in (False, True):
        assert bool(near(other)._queues) is at_once
        with Queue(holder) as queue, monkeypatch.context() as patient:
            queue.come("leader", lambda: log.apply(request("leader")))
            patient.setattr(file_turns, "_GLANCES", 10**6)  # it never queues, unless at once
            queue.come("waits", lambda: other.apply(request("waits")))
            queue.go()
        assert all(isinstance(one, Event) for one in queue.given.values()), queue.given
    all_once(holder, *["leader", "waits"] * 2)


def test_whoever_ends_a_turn_wakes_one_who_waits(
    log: Log, other: Log, holder: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also who has never left anything to others himself."""
    monkeypatch.setattr(file_turns, "_GLANCE_S", 10**6)
    given: list[Event] = []
    thread = threading.Thread(
        target=lambda: given.append(other.apply(request("waits"))), daemon=True
    )
    with holder.history.store.turn():
        thread.start()
        until(lambda: places(near(holder)) > 0, "it waits", cpu_s=20)
        assert places(near(holder), stop=QUEUE) == 0
    until(lambda: bool(given), "it was woken", cpu_s=20)
    all_once(holder, "waits")


def test_what_is_told_leads_to_the_state_in_the_log_or_is_not_shown(
    log: Log, other: Log, holder: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = group_commit.told

    def another_tensor(*of: Any) -> Any:
        group = told(*of)
        tensors = [
            ToldTensor(one.name, one.seq, bytes([one.data[0] ^ 1]) + one.data[1:])
            for one in group.tensors
        ]
        return replace(group, tensors=tuple(tensors))

    monkeypatch.setattr(group_commit, "told", another_tensor)
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        queue.come("waits", lambda: other.apply(request("waits")))
    assert near(log).told().tensors, "they are told"
    assert isinstance(queue.given["waits"], Event), queue.given
    assert torch.equal(other.state()["w"], torch.full((16, 16), 4.0))
    all_once(holder, "leader", "waits")


def test_who_was_busy_hears_of_all_tensors_that_changed_meanwhile(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(name: str) -> IncrementalUpdateRequest:
        return IncrementalUpdateRequest(name, 1.0, learning_rate=1.0)

    with ExitStack() as opened:
        ledgers = [opened.enter_context(Ledger.open(database_url)) for _ in range(4)]
        base = {name: torch.zeros(16, 16) for name in "abc"}
        holder, leader, waits, busy = [ledger.model(MODEL, base=base) for ledger in ledgers]
        for log in (leader, waits, busy):
            log.apply(of("a"))
        leader.catch_up()
        waits.catch_up()
        for first, second in (("a", "b"), ("c", "a")):
            with Queue(holder) as queue:
                queue.come("leader", partial(leader.apply, of(first)))
                queue.come("waits", partial(waits.apply, of(second)))
        groups_of_busy = busy._writer._groups
        for asks in ("news", "head", "event"):
            monkeypatch.setattr(busy.history.store, asks, None)
        groups_of_busy._hear(near(leader).told())
        assert groups_of_busy.follow()
        monkeypatch.undo()
        assert busy.live.head == holder.history.head()
        for name, count in (("a", 5.0), ("b", 1.0), ("c", 1.0)):
            assert torch.equal(busy.state()[name], torch.full((16, 16), count))
        assert verify(busy.history).problem is None


def test_an_error_is_for_whose_command_it_is(log: Log, other: Log, holder: Log) -> None:
    other.apply(request("before", key="k"))
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        queue.come("waits", lambda: other.apply(request("something else", key="k")))
    assert isinstance(queue.given["leader"], Event)
    assert isinstance(queue.given["waits"], IdempotencyMismatch)
    all_once(holder, "before", "leader")


def test_one_key_from_two_writers_is_one_event(log: Log, other: Log, holder: Log) -> None:
    with Queue(holder) as queue:
        queue.come("one", lambda: log.apply(request("same", key="k")))
        queue.come("two", lambda: other.apply(request("same", key="k")))
    one, two = queue.given["one"], queue.given["two"]
    assert isinstance(one, Event) and isinstance(two, Event)
    assert one.seq == two.seq
    all_once(holder, "same")


@pytest.mark.parametrize(
    "policy",
    [Policy(operands="all"), Policy(two_person=True), Policy(updates=False), Policy(read_only="")],
)
def test_a_command_is_not_carried_out_under_another_policy(
    log: Log, other: Log, holder: Log, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended = transactions(other, monkeypatch)
    monkeypatch.setattr(log._writer._groups, "_policy", policy)
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        queue.come("waits", lambda: other.apply(request("waits")))
    assert len(appended) == 1, "it did so itself"
    all_once(holder, "leader", "waits")


def test_a_guard_is_its_own_writers_affair(
    log: Log, other: Log, holder: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other._writer._groups, "_policy", Policy(guard=object()))  # type: ignore[arg-type]
    appended = transactions(other, monkeypatch)
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        queue.come("waits", lambda: other.apply(request("waits")))
    assert len(appended) == 1
    all_once(holder, "leader", "waits")


def requests() -> Iterator[IncrementalUpdateRequest]:
    values = torch.arange(-8, 8, dtype=torch.float64) / 3
    for kind in ("additive", "multiplicative", "replace"):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            yield IncrementalUpdateRequest("half", values.to(dtype), update_type=kind)
        yield IncrementalUpdateRequest("w", 0.3, update_type=kind, learning_rate=1 / 3)
        yield IncrementalUpdateRequest(
            "w", [0.1, -0.2], indices=[7, 3], update_type=kind, metadata={"é": [1, None, 0.1]}
        )
    for special in (float("nan"), float("inf"), -0.0, 5e-324, 1e308):
        yield IncrementalUpdateRequest("w", special, update_type="replace")
    yield IncrementalUpdateRequest("numbers", [1, 2, 3], update_type="replace")
    yield IncrementalUpdateRequest("flags", [True, False], update_type="replace")
    yield IncrementalUpdateRequest("complex", torch.tensor([1 + 2j]), update_type="replace")
    yield IncrementalUpdateRequest("eighth", 0.25, update_type="replace")
    yield IncrementalUpdateRequest(
        "scalar", 1, actor="a", reason="r", request_id="i", idempotency_key="k", metadata={}
    )


@SQLITE
def test_what_is_asked_for_is_the_same_command(database_url: str) -> None:
    base = {
        "w": torch.zeros(16),
        "half": torch.zeros(16, dtype=torch.bfloat16),
        "eighth": torch.zeros(4, dtype=torch.float8_e4m3fn),
        "numbers": torch.zeros(3, dtype=torch.int64),
        "flags": torch.zeros(2, dtype=torch.bool),
        "complex": torch.zeros(1, dtype=torch.complex64),
        "scalar": torch.zeros(()),
    }
    with Ledger.open(database_url) as ledger:
        log = ledger.model("all", base=base)
        specs = log.projector.specs
        count = 0
        for one in requests():
            made: list[object] = []
            log._writer.execute = made.append  # type: ignore[assignment, method-assign]
            log.apply(one)
            (command,) = made
            data = asked(command, ANYTHING_GOES, b"salt", (7, b"head"), "cpu")  # type: ignore[arg-type]
            assert data is not None, one
            found = asked_for(data, ANYTHING_GOES, specs)
            assert found is not None and found[1:] == (b"salt", (7, b"head"), "cpu")
            again = found.command
            assert again.digest == command.digest  # type: ignore[attr-defined]
            assert (again.caller, again.metadata, again.batch) == (
                command.caller,  # type: ignore[attr-defined]
                command.metadata,  # type: ignore[attr-defined]
                False,
            )
            (mine,), (theirs,) = command.updates, again.updates  # type: ignore[attr-defined]
            assert theirs.facts == mine.facts
            assert (theirs.spec, theirs.learning_rate) == (mine.spec, mine.learning_rate)
            for have, had in ((theirs.operand, mine.operand), (theirs.indices, mine.indices)):
                assert (have is None) == (had is None)
                if have is not None:
                    assert (have.dtype, have.shape) == (had.dtype, had.shape)
                    assert (
                        have.numpy(force=True).tobytes() == had.numpy(force=True).tobytes()
                        if (have.dtype is not torch.bfloat16)
                        else torch.equal(have, had)
                    )
            count += 1
        assert count > 20
        assert asked_for(data, ANYTHING_GOES, {}) is None, "of another model"


# Processes that die, or stop, while they carry out the commands of others


def take_up(url: str) -> int:
    torch.set_num_threads(1)
    # What the first update imports, so that none takes long in its turn.
    warm_few()
    arithmetic.warm()
    _ours[:] = [Ledger.open(url).model(MODEL)]
    _ours[0].apply(request(FIRST))
    return os.getpid()


def lead_and(at: str, sent: int) -> None:
    """Write, and send a signal to itself at some point of carrying others' commands out."""
    own, name = {
        "taken": (GroupCommit, "promise"),
        "promised": (Appender, "append"),
        "committed": (GroupCommit, "committed"),
    }[at]
    before = getattr(own, name)

    def now(self: object, *given: object) -> object:
        if at != "promised" or len(given[0]) > 1:  # type: ignore[arg-type]
            setattr(own, name, before)
            os.kill(os.getpid(), sent)
        return before(self, *given)

    setattr(own, name, now)
    _ours[0].apply(request("leader"))


@pytest.mark.parametrize("at", ["taken", "promised", "committed"])
def test_a_leader_that_is_killed_leaves_each_update_once(
    database_url: str, log: Log, other: Log, holder: Log, at: str
) -> None:
    running = Children(1)
    running.run(take_up, (database_url,))
    waiting = near(holder)
    with Queue(holder) as queue:
        running._pipes[0].send((lead_and, (at, signal.SIGKILL)))
        until(lambda: places(waiting, stop=QUEUE) > 0, "the leader queues", cpu_s=20)
        queue.come("waits", lambda: other.apply(request("waits")))
        queue.come("too", lambda: log.apply(request("too")))
    running.end()
    assert running.processes[0].exitcode == -signal.SIGKILL
    assert all(isinstance(one, Event) for one in queue.given.values()), queue.given
    written = ("leader",) if at == "committed" else ()
    all_once(holder, *written, "waits", "too")


@pytest.mark.parametrize("at", ["taken", "promised", "committed"])
def test_a_leader_that_is_stopped_leaves_each_update_once(
    database_url: str, log: Log, other: Log, holder: Log, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Children(1)
    running.run(take_up, (database_url,))
    waiting = near(holder)
    with Queue(holder) as queue:
        running._pipes[0].send((lead_and, (at, signal.SIGSTOP)))
        until(lambda: places(waiting, stop=QUEUE) > 0, "the leader queues", cpu_s=20)
        monkeypatch.setattr(turns, "PATIENCE_S", 0.3)
        queue.come("waits", lambda: other.apply(request("waits")))
    pid = running.processes[0].pid
    assert isinstance(queue.given["waits"], Event), "it is not waited for for ever"
    os.kill(pid, signal.SIGCONT)
    assert running._pipes[0].recv() is None
    running.end()
    all_once(holder, "leader", "waits")


def write_many(name: str, count: int, note: str) -> None:
    """Write so often, noting each update once it is answered."""
    with Path(note).open("a") as file:
        for number in range(count):
            _ours[0].apply(request(f"{name}/{number}"))
            file.write(f"{name}/{number}\n")
            file.flush()


def has_lines(note: Path, count: int) -> bool:
    return note.read_text().count("\n") >= count


@pytest.mark.parametrize("rounds", [1, pytest.param(40, marks=pytest.mark.soak)])
def test_kills_among_writers_that_carry_out_each_others_updates(
    database_url: str, log: Log, tmp_path: Path, rounds: int
) -> None:
    chance = random.Random(7)
    before = Counter(actors(log))
    for round_ in range(rounds):
        running = Children(4)
        running.run(take_up, *[(database_url,)] * 4)
        note = tmp_path / f"round-{round_}"
        note.touch()
        for number, pipe in enumerate(running._pipes):
            pipe.send((write_many, (f"{round_}/{number}", 150, str(note))))
        until(partial(has_lines, note, chance.randint(20, 150)), "they write", cpu_s=60)
        for process in chance.sample(running.processes, 2):
            os.kill(process.pid, signal.SIGKILL)
        for pipe in running._pipes:
            with suppress(EOFError, ConnectionResetError):
                pipe.recv()
        running.end()
        now = Counter(actors(log)) - before
        assert not [name for name, times in now.items() if times > 1 and name != FIRST]
        assert set(note.read_text().split()) <= set(now), "an acknowledged update is lost"
    log.catch_up()
    assert torch.equal(log.state()["w"], torch.full((16, 16), float(len(actors(log)))))
    assert verify(log.history).problem is None


# What stands in files


def test_what_is_damaged_is_nothing_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"head")
    file = os.open(path, os.O_RDWR)
    tensor = ToldTensor("w", 3, b"event" * 10)
    group = Group((Told(3, b"h" * 32, b"event" * 100),), 2, (tensor,), anchor=1)
    groups.write(file, 4, group)
    assert groups.read(file, 4) == group
    whole = path.read_bytes()
    for at in range(4, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 255
        path.write_bytes(damaged)
        assert groups.read(file, 4) == NO_GROUP, at
    path.write_bytes(whole[:-1])
    assert groups.read(file, 4) == NO_GROUP
    path.write_bytes(whole)
    groups.write(file, 4, Group(undisturbed=1))
    assert groups.read(file, 4) == Group(undisturbed=1)
    assert b"event" not in path.read_bytes(), "nothing stays behind it"
    os.close(file)


def test_what_was_told_last_is_told_again_with_what_it_led_to() -> None:
    def then(
        group: Group, first: int, last: int, *names: str, size: int = 1, after: int | None = None
    ) -> Group:
        events = tuple(Told(seq, bytes([seq]), b"") for seq in range(first, last + 1))
        tensors = tuple(ToldTensor(name, last, bytes(size)) for name in names)
        news = Group(events, tensors=tensors, anchor=first)
        return group.then(news, bytes([after or first - 1]))

    def said(group: Group) -> tuple[list[int], dict[str, int], int]:
        tensors = {one.name: one.seq for one in group.tensors}
        return [one.seq for one in group.events], tensors, group.anchor

    first = then(Group(undisturbed=2), 1, 2, "a", "b")
    assert said(first) == ([1, 2], {"a": 2, "b": 2}, 1)
    second = then(first, 3, 3, "b")
    assert said(second) == ([1, 2, 3], {"a": 2, "b": 3}, 3)
    assert second.undisturbed == 2
    assert said(then(second, 4, 12)) == ([*range(1, 13)], {"a": 2, "b": 3}, 4)
    later = then(then(second, 4, 12), 13, 13, "c")
    assert said(later) == ([*range(5, 14)], {"c": 13}, 13), (
        "no more than a few, and no older tensor"
    )
    assert said(then(second, 5, 5, "a")) == ([5], {"a": 5}, 5), "one is missing between"
    other = then(second, 2, 2, "a", after=77)
    assert said(other) == ([2], {"a": 2}, 2), "nothing of another history, nor its snapshots"
    assert said(then(second, 4, 4, "c", size=1)) == ([1, 2, 3, 4], {"a": 2, "b": 3, "c": 4}, 4)
    large = then(Group(), 1, 1, "a", size=2**19)
    assert said(then(large, 2, 2, "b")) == ([2], {"b": 2}, 2), "what is large is not told again"
    assert said(then(second, 4, 3)) == ([], {}, 4), "nothing, after what cannot be told"


def boxes(folder: Path, count: int) -> list[Boxes]:
    return [Boxes(folder / "boxes", lambda: 0o600) for _ in range(count)]


def put(own: Boxes, command: bytes) -> Ticket:
    ticket = own.put(command)
    assert ticket is not None
    return ticket


def test_a_command_is_found_until_something_is_promised_for_it(tmp_path: Path) -> None:
    mine, leader = boxes(tmp_path, 2)
    ticket = put(mine, b"command")
    assert mine.others() == [], "not one's own"
    (found,) = leader.others()
    assert found.command == b"command"
    assert leader.others() == [found], "whoever took it may have died"
    assert ticket.promised() is None
    leader.promise(found, 7, b"h" * 32)
    assert ticket.promised() == (7, b"h" * 32)
    assert leader.others() == []
    ticket.withdraw()
    assert ticket.promised() == (7, b"h" * 32), "it is asked for again after each state"
    next_one = put(mine, b"next")
    assert next_one.promised() is None, "a promise is for one command"
    assert [one.command for one in leader.others()] == [b"next"]
    next_one.withdraw()
    assert leader.others() == []
    assert b"command" not in (tmp_path / "boxes").read_bytes()
    mine.close()
    with pytest.raises(OSError, match="given up"):
        next_one.promised()
    leader.close()


def test_who_is_carried_out_is_rung_for_and_one_of_the_others(tmp_path: Path) -> None:
    leader, *waiting = boxes(tmp_path, 5)
    leader.put(b"its own")
    for one in waiting:
        put(one, b"command")
    for asked_by in leader.others()[1:3]:
        leader.promise(asked_by, 7, b"h" * 32)
    leader.ring()
    assert [one.wait(0) for one in waiting] == [True, True, True, False]
    assert [one.wait(0) for one in waiting] == [False] * 4
    waiting[1].ring()
    assert [one.wait(0) for one in waiting] == [False, False, True, True], "from its own on"
    leader.ring()
    put(waiting[0], b"next")
    assert waiting[0].wait(0) is False, "that was for the one before"
    for one in (leader, *waiting):
        one.close()


def test_a_promise_may_come_after_the_command_was_taken_back(tmp_path: Path) -> None:
    mine, leader = boxes(tmp_path, 2)
    ticket = put(mine, b"command")
    (found,) = leader.others()
    ticket.withdraw()
    leader.promise(found, 7, b"h" * 32)
    assert ticket.promised() == (7, b"h" * 32)
    mine.close()
    leader.close()


@pytest.mark.parametrize("promised", [False, True])
def test_what_the_dead_have_left_is_wiped_out(tmp_path: Path, promised: bool) -> None:
    dead, leader, cleaner = boxes(tmp_path, 3)
    put(dead, b"of the dead")
    if promised:
        leader.promise(leader.others()[0], 7, b"h" * 32)
    dead.close()
    if promised:
        cleaner.clean()
    assert leader.others() == []
    assert b"dead" not in (tmp_path / "boxes").read_bytes()
    put(dead, b"again")
    assert [one.command for one in leader.others()] == [b"again"]
    leader.close()
    cleaner.close()
    dead.close()


def test_a_command_half_written_is_none(tmp_path: Path) -> None:
    mine, leader = boxes(tmp_path, 2)
    put(mine, b"command")
    content = (tmp_path / "boxes").read_bytes()
    for at in (0, 8, 16, content.index(b"command")):
        damaged = bytearray(content)
        damaged[at + 1] ^= 1
        (tmp_path / "boxes").write_bytes(damaged)
        assert leader.others() == [], at
    mine.close()
    leader.close()


def test_more_writers_than_boxes_do_without(tmp_path: Path) -> None:
    all_of_them = boxes(tmp_path, 17)
    assert [one.put(b"x") is not None for one in all_of_them] == [True] * 16 + [False]
    assert all_of_them[0].put(bytes(2**20)) is None, "too large for a box"
    all_of_them[3].close()
    assert all_of_them[16].put(b"x") is not None
    for one in all_of_them:
        one.close()


@SQLITE
def test_what_was_told_of_another_history_is_not_shown(
    database_url: str, log: Log, other: Log, holder: Log, tmp_path: Path
) -> None:
    """A database put back as it was, beside a file of turns that is newer."""
    file = Path(database_url.removeprefix("sqlite:///"))
    log.apply(request("log"))
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(file)) as now, closing(sqlite3.connect(copy)) as then:
        now.backup(then)
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        queue.come("waits", lambda: other.apply(request("waits")))
    shutil.copytree(f"{file}-turns", f"{copy}-turns")
    assert near(log).told().events
    with Ledger.open(f"sqlite:///{copy}") as older, Ledger.open(f"sqlite:///{copy}") as held:
        mine = older.model(MODEL)
        shown: list[Event] = []
        mine.projector.subscribe(shown.append)
        with Queue(held.model(MODEL)) as again:
            again.come("mine", lambda: mine.apply(request("mine")))
        assert isinstance(again.given["mine"], Event)
        assert shown == []
        all_once(mine, "log", "mine")


@SQLITE
def test_nobody_leaves_words_behind(database_url: str, log: Log, other: Log, holder: Log) -> None:
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        queue.come("waits", lambda: other.apply(request("waits")))
    assert all(isinstance(one, Event) for one in queue.given.values())
    files = list(Path(database_url.removeprefix("sqlite:///") + "-turns").iterdir())
    assert len(files) == 2, files
    for file in files:
        assert b"reason of" not in file.read_bytes(), file
        assert file.stat().st_mode & 0o077 == 0


# Turns of one machine before those of all


@POSTGRES
def test_who_is_undisturbed_asks_for_the_servers_lock_with_the_statement(
    log: Log, other: Log
) -> None:
    for _ in range(4):
        log.apply(request("log"))
        other.apply(request("other"))
    with other.history.store.turn() as turn:
        assert turn.held and turn.deferred
    all_once(log, *["log", "other"] * 4)


@POSTGRES
def test_a_writer_of_another_machine_is_given_its_turns(
    log: Log, other: Log, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        log.apply(request("log"))
        other.apply(request("other"))
    with Ledger.open(database_url) as ledger:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(postgres, "MachineLock", lambda _model_id, everywhere: everywhere)
            far = ledger.model(MODEL)
        assert not isinstance(far.history.store._turnstile._lock, MachineLock)
        late: list[Event] = []
        thread = threading.Thread(target=lambda: late.append(log.apply(request("late"))))
        with far.history.store.turn():
            thread.start()
            until(lambda: server_is_waited_for(far), "it waits for the other's turn", cpu_s=20)
            first = far.apply(request("far"))
        thread.join()
        assert late[0].seq == first.seq + 1
        with other.history.store.turn() as turn:
            assert turn.held and not turn.deferred, "once disturbed it waits for all again"
    all_once(log, *["log", "other"] * 4, "far", "late")


def server_is_waited_for(log: Log) -> bool:
    with log.history.store._database.session() as execute:
        ask = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        (count,) = execute(ask).fetchone()
    return count > 0


@POSTGRES
def test_a_folder_that_others_may_enter_is_not_used(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"weightledger-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o755)  # whatever the umask is
    with Ledger.open(database_url) as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(16, 16)})
        log.apply(request("log"))
        with log.history.store.turn() as turn:
            assert turn.held and turn.neighbours is None
        all_once(log, "log")
    assert list(folder.iterdir()) == []


# What a hostile review found


def test_a_write_in_answer_to_a_write_leaves_only_itself_to_others(
    log: Log, other: Log, holder: Log
) -> None:
    """A listener's write waits behind a neighbour's, when the one it answers is done."""
    given: list[Event | BaseException] = []
    ready = threading.Event()

    def others() -> None:
        with Queue(holder) as queue:
            queue.come("waits", lambda: other.apply(request("waits")))
            behind = places(near(holder))
            ready.set()
            until(lambda: places(near(holder)) > behind, "the answer has a place", cpu_s=20)
        given.append(queue.given["waits"])

    def answer(_: Committed) -> None:
        if not ready.is_set():
            thread.start()
            assert ready.wait(PATIENCE_S)
            log.apply(request("answer"))

    thread = threading.Thread(target=others)
    log.subscribe(answer)
    log.apply(request("first"))
    thread.join()
    assert isinstance(given[0], Event)
    all_once(holder, "first", "waits", "answer")


@pytest.mark.parametrize("moment", ["before its state is read", "before it is appended"])
def test_a_leader_may_go_on_at_any_moment_after_it_was_gone_round(
    database_url: str,
    log: Log,
    other: Log,
    holder: Log,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = Children(1)
    running.run(take_up, (database_url,))
    pid, store, begin = running.processes[0].pid, other.history.store, other._writer._groups.begin

    def goes_on() -> None:
        monkeypatch.undo()
        os.kill(pid, signal.SIGCONT)
        assert running._pipes[0].recv() is None

    def late(*items: Append) -> None:
        goes_on()
        store.append(*items)

    def begins(turn: turns.Turn) -> tuple[Job, Event] | None:
        answer = begin(turn)
        goes_on()
        other.catch_up()
        return answer

    with Queue(holder) as queue:
        running._pipes[0].send((lead_and, ("taken", signal.SIGSTOP)))
        until(lambda: places(near(holder), stop=QUEUE) > 0, "the leader queues", cpu_s=20)
        monkeypatch.setattr(turns, "PATIENCE_S", 0.3)
        queue.come("waits", lambda: other.apply(request("waits")))
        if moment == "before it is appended":
            monkeypatch.setattr(store, "append", late)
        else:
            monkeypatch.setattr(other._writer._groups, "begin", begins)
    assert isinstance(queue.given["waits"], Event), queue.given
    running.end()
    all_once(holder, "leader", "waits")


def test_an_error_says_that_the_outcome_is_unknown_where_it_is(
    database_url: str, log: Log, other: Log, holder: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room() -> None:
        raise Unavailable("there is no room")

    running = Children(1)
    running.run(take_up, (database_url,))
    with Queue(holder) as queue:
        running._pipes[0].send((lead_and, ("promised", signal.SIGKILL)))
        until(lambda: places(near(holder), stop=QUEUE) > 0, "the leader queues", cpu_s=20)
        monkeypatch.setattr(other._writer._staged, "make_room", no_room)
        queue.come("waits", lambda: other.apply(request("waits")))
    running.end()
    unknown = queue.given["waits"]
    assert isinstance(unknown, OutcomeUnknown) and "there is no room" in str(unknown)
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.create_version("leads alone"))
        queue.come("waits", lambda: other.apply(request("waits")))
    assert isinstance(queue.given["waits"], Unavailable), "nobody was at it"
    monkeypatch.undo()
    other.apply(request("at last"))
    all_once(holder, "at last")


def test_a_command_from_a_log_that_is_not_known_here_is_not_carried_out(
    log: Log, other: Log, holder: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_elsewhere(
        command: Command, policy: Policy, salt: bytes, head: tuple[int, bytes], device: str
    ) -> bytes | None:
        return asked(command, policy, salt, (head[0], head[1][::-1]), device)

    monkeypatch.setattr(group_commit, "asked", from_elsewhere)
    appended = transactions(other, monkeypatch)
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        queue.come("waits", lambda: other.apply(request("waits")))
    assert len(appended) == 1
    all_once(holder, "leader", "waits")


@POSTGRES
def test_two_ledgers_of_one_server_share_no_turns(database_url: str, log: Log) -> None:
    with closing(psycopg.connect(database_url, autocommit=True)) as connection:
        connection.execute("CREATE SCHEMA elsewhere")
    joint = "&" if "?" in database_url else "?"
    with Ledger.open(f"{database_url}{joint}options=-csearch_path%3Delsewhere") as ledger:
        other = ledger.model(MODEL, base={"w": torch.zeros(16, 16)})
        for one in (log, other):
            one.apply(request("alone"))
        assert near(log)._path != near(other)._path
        assert log.history.store._of.model_id == other.history.store._of.model_id


def wait_with_words(url: str) -> None:
    _ours[0].apply(request("secret"))


@SQLITE
def test_a_redaction_wipes_out_what_the_dead_have_left(
    database_url: str, log: Log, holder: Log
) -> None:
    running = Children(1)
    running.run(take_up, (database_url,))
    with Queue(holder) as queue:
        running._pipes[0].send((wait_with_words, (database_url,)))
        until(lambda: places(near(holder)) > 0, "it waits", cpu_s=20)
        running.processes[0].kill()
        running.end()
    assert not queue.given
    folder = Path(database_url.removeprefix("sqlite:///") + "-turns")

    def left() -> list[Path]:
        return [one for one in folder.iterdir() if b"reason of secret" in one.read_bytes()]

    assert len(left()) == 1
    event = log.apply(request("log"))
    log.redact(event.name)
    assert left() == []


def test_who_has_not_written_leaves_nothing_to_others(
    database_url: str, log: Log, holder: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether it may."""
    with Ledger.open(database_url) as ledger:
        new = ledger.model(MODEL)
        appended = transactions(new, monkeypatch)
        with Queue(holder) as queue:
            queue.come("leader", lambda: log.apply(request("leader")))
            queue.come("new", lambda: new.apply(request("new")))
        assert len(appended) == 1
        all_once(holder, "leader", "new")


@pytest.mark.parametrize("answer", ["version", "update", "rollback"])
def test_what_a_listener_writes_after_others_updates_is_written_once(
    log: Log, other: Log, holder: Log, answer: str
) -> None:
    answers: list[Event] = []

    def followed(event: Event) -> None:
        if not answers:
            answers.append(event)
            if answer == "version":
                answers.append(log.create_version("because of it"))
            elif answer == "update":
                answers.append(log.apply(request("answer")))
            else:
                answers.append(log.rollback(f"seq:{event.seq - 1}"))

    log.subscribe(lambda _: None, followed)
    with Queue(holder) as queue:
        queue.come("leader", lambda: log.apply(request("leader")))
        queue.come("waits", lambda: other.apply(request("waits")))
    assert all(isinstance(one, Event) for one in queue.given.values()), queue.given
    assert len(answers) == 2
    if answer == "rollback":
        assert Counter(actors(holder)) == Counter([FIRST, FIRST, "leader", "waits"])
        assert verify(holder.history).problem is None
    else:
        all_once(holder, "leader", "waits", *(["answer"] if answer == "update" else []))


@SQLITE
def test_nobody_writes_for_the_owner_of_a_file_that_was_replaced(
    database_url: str, log: Log, other: Log, tmp_path: Path
) -> None:
    file = Path(database_url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(file)) as now, closing(sqlite3.connect(tmp_path / "copy")) as then:
        now.backup(then)
    file.rename(tmp_path / "moved")
    (tmp_path / "copy").rename(file)
    with Ledger.open(database_url) as ledger, Ledger.open(database_url) as third:
        new, holder = ledger.model(MODEL), third.model(MODEL)
        new.apply(request(FIRST))
        with Queue(holder) as queue:
            queue.come("leader", lambda: new.apply(request("leader")))
            queue.come("waits", lambda: other.apply(request("waits")))
        assert isinstance(queue.given["waits"], StorageError), queue.given
        all_once(holder, "leader")


@POSTGRES
def test_neighbours_lose_to_another_machine_once(
    log: Log, other: Log, holder: Log, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then they have the turn among all, and nobody comes between."""
    with Ledger.open(database_url) as ledger:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(postgres, "MachineLock", lambda _model_id, everywhere: everywhere)
            far = ledger.model(MODEL)
        for _ in range(3):
            log.apply(request("log"))
            other.apply(request("other"))
        sent: list[int] = []
        write = AdvisoryLock.write

        def noting(
            lock: AdvisoryLock, statements: Sequence[turns.Statement]
        ) -> list[tuple[int, ...]]:
            if lock is not lock_of_far:
                sent.append(len(statements))
            return write(lock, statements)

        lock_of_far = far.history.store._turnstile._lock
        monkeypatch.setattr(AdvisoryLock, "write", noting)
        thread = threading.Thread(target=lambda: far.apply(request("far too")))
        with Queue(holder) as queue:
            queue.come("leader", lambda: log.apply(request("leader")))
            queue.come("waits", lambda: other.apply(request("waits")))
            with far.history.store.turn():
                queue.let_go()
                until(lambda: server_is_waited_for(far), "the leader waits", cpu_s=20)
                far.apply(request("far"))
                thread.start()
        thread.join()
    assert all(isinstance(one, Event) for one in queue.given.values()), queue.given
    assert sent == [1, 1], "nothing is sent in vain, and what lost once goes alone"
    all_once(holder, *["log", "other"] * 3, "far", "far too", "leader", "waits")
