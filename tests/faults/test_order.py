"""Order under everything at once, on both databases: writers that race, die, stall and retry.

Nothing is missed and nothing doubled: seqs are gapless, each request leads to one event, and who
reads along sees every event once, in order.
"""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
import torch

from tests.faults.children import Children
from tests.serving import Server, serving
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import IdempotencyMismatch, LedgerError, StorageBusy
from weightledger.ledger.events import Event
from weightledger.ledger.log import Log
from weightledger.ledger.store import rows
from weightledger.ledger.store.sql_store import SqlStore

MODEL = "m"
WRITERS = 8
READERS = 2
SERVED = "tests.faults.models:factory"


@pytest.fixture
def url(database_url: str) -> str:
    """A database with a model of eight weights."""
    with Ledger.open(database_url) as ledger:
        ledger.model(MODEL, base={"w": torch.zeros(8)})
    return database_url


@pytest.fixture
def writers() -> Iterator[Children]:
    made = Children(WRITERS)
    yield made
    made.end()


def add(value: float, key: str | None = None, expected: int | None = None) -> Any:
    return IncrementalUpdateRequest(
        "w",
        value,
        learning_rate=1.0,
        update_type="additive",
        idempotency_key=key,
        expected_seq=expected,
    )


def patiently(work: Callable[[], Event]) -> Event:
    """Again, when other writers won too often or the database was busy for too long."""
    while True:
        with contextlib.suppress(StorageBusy):
            return work()


# In the writers' processes


def write(url: str, writer: int, count: int, acknowledged: Any) -> int:
    """Write, with transactions in between that fail after they have inserted their event."""
    chance = random.Random(writer)
    with Ledger.open(url) as ledger:
        log = ledger.model(MODEL)
        for number in range(count):
            key = f"{writer}-{number}"
            if chance.random() < 0.3:
                abort(ledger, log)
            event = patiently(lambda key=key: log.apply(add(1.0, key)))
            acknowledged.send((key, event.seq))
    return count


def abort(ledger: Ledger, log: Log) -> None:
    """Insert what would be the next event, in a transaction that fails."""
    store = ledger.store
    assert isinstance(store, SqlStore)
    with contextlib.suppress(ZeroDivisionError, LedgerError), store._database.write() as execute:
        execute(*next_row(log.live.head))
        raise ZeroDivisionError


def next_row(head: Event) -> tuple[str, tuple[Any, ...]]:
    key, *row = rows.to_row(1, head)
    without = (*row[:7], None, None, None, *row[10:])  # a series, number and key of its own
    return rows.INSERT, (key + 1, *without, None)


def expecting(url: str, expected: int, threads: int) -> list[str]:
    """What came of writers of one process that all expect the same seq."""
    with Ledger.open(url) as ledger, ThreadPoolExecutor(threads) as pool:
        log = ledger.model(MODEL)

        def one(_: int) -> str:
            try:
                log.apply(add(1.0, expected=expected))
            except LedgerError as error:
                return type(error).__name__
            return "applied"

        return list(pool.map(one, range(threads)))


def retry(url: str, keys: list[str], times: int, seed: int) -> dict[str, set[int]]:
    """Send the update of every key so many times, in an order of one's own; the seqs answered."""
    chance = random.Random(seed)
    seqs: dict[str, set[int]] = {key: set() for key in keys}
    with Ledger.open(url) as ledger:
        log = ledger.model(MODEL)
        for _ in range(times):
            for key in chance.sample(keys, len(keys)):
                event = patiently(lambda key=key: log.apply(add(float(key.split("-")[1]), key)))
                seqs[key].add(event.seq)
    return seqs


# Beside the writers


class Stalled:
    """A transaction that has inserted what is to be the next event, and waits."""

    def __init__(self, url: str) -> None:
        self._stack = contextlib.ExitStack()
        self._url = url

    def hold(self) -> None:
        store = SqlStore.open(self._url)
        self._stack.callback(store.close)
        head = store.model(MODEL).head()
        self._stack.enter_context(contextlib.suppress(ZeroDivisionError, LedgerError))
        execute = self._stack.enter_context(store._database.write())
        with contextlib.suppress(psycopg.Error):  # someone else was faster: it stalls all the same
            execute(*next_row(head))

    def let_go(self) -> None:
        self._stack.__exit__(ZeroDivisionError, ZeroDivisionError(), None)


class Tail(threading.Thread):
    """Reads along by seq until everything is read."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.ended = threading.Event()
        self.seqs: list[int] = []

    def run(self) -> None:
        store = SqlStore.open(self._url)
        while True:
            ended = self.ended.is_set()
            start = self.seqs[-1] + 1 if self.seqs else 0
            self.seqs += [event.seq for event in store.model(MODEL).scan(start)]
            if ended:
                store.close()
                return
            time.sleep(0.002)  # a reader's pace


@pytest.mark.parametrize("each", [12, pytest.param(250, marks=pytest.mark.soak)])
def test_writers_that_race_abort_stall_and_die_leave_one_gapless_order(
    url: str, writers: Children, each: int
) -> None:
    tails = [Tail(url) for _ in range(READERS)]
    for tail in tails:
        tail.start()
    pipes = [writers.context.Pipe(duplex=False) for _ in range(WRITERS)]
    acknowledged: dict[str, int] = {}
    killed = {2: each // 4, 5: each // 2}  # writer, and after how many answers

    def listen(writer: int) -> None:
        heard, said = pipes[writer]
        with heard, contextlib.suppress(EOFError):
            for answered in range(1, each + 1):
                # Its end of the pipe is here too until it has said something.
                if heard not in connection.wait([heard, writers.processes[writer].sentinel]):
                    return
                key, seq = heard.recv()
                said.close()
                acknowledged[key] = seq
                if killed.get(writer) == answered:
                    writers.processes[writer].kill()

    with ThreadPoolExecutor(WRITERS + 1) as pool:
        given = [(url, writer, each, pipes[writer][1]) for writer in range(WRITERS)]
        written = pool.submit(writers.run, write, *given)
        listening = [pool.submit(listen, writer) for writer in range(WRITERS)]
        stalled = Stalled(url)
        stalled.hold()
        time.sleep(0.3)  # how long it stalls
        stalled.let_go()
        results = written.result()
        for one in listening:
            one.result()
    for tail in tails:
        tail.ended.set()
        tail.join()
    assert results == [None if writer in killed else each for writer in range(WRITERS)]

    with Ledger.open(url) as ledger:
        history = ledger.history(MODEL)
        events = list(history.store.scan())
        assert verify(history).problem is None
        state = history.state()["w"]
    assert [event.seq for event in events] == list(range(len(events)))
    for tail in tails:
        assert tail.seqs == list(range(len(events)))
    recorded = {event.idempotency_key: event.seq for event in events[1:]}
    assert len(recorded) == len(events) - 1
    assert acknowledged.items() <= recorded.items()
    unanswered = recorded.keys() - acknowledged.keys()
    for writer in killed:
        assert sum(key.startswith(f"{writer}-") for key in unanswered) <= 1
    assert all(int(key.split("-")[0]) in killed for key in unanswered)
    assert torch.equal(state, torch.full((8,), float(len(events) - 1)))


def test_of_64_writers_in_8_processes_that_expect_the_same_seq_one_wins(
    url: str, writers: Children
) -> None:
    answers = writers.run(expecting, *[(url, 0, 8)] * WRITERS)
    outcomes = Counter(outcome for outcomes in answers for outcome in outcomes)
    assert outcomes == {"applied": 1, "PreconditionFailed": 63}
    with Ledger.open(url) as ledger:
        assert ledger.history(MODEL).head().seq == 1


@pytest.mark.parametrize(
    ("count", "times"), [(500, 20), pytest.param(5000, 40, marks=pytest.mark.soak)]
)
def test_ten_thousand_retries_lead_to_one_event_a_key(
    url: str, writers: Children, count: int, times: int
) -> None:
    """Each writer sends most keys first itself, and repeats those that others have sent."""
    keys = [f"key-{number}" for number in range(count)]
    given = []
    for writer in range(WRITERS):
        share = keys[writer * count // WRITERS :] + keys[: writer * count // WRITERS]
        given.append((url, share[: count // 2], times * 2 // WRITERS, writer))
    answers = writers.run(retry, *given)
    with Ledger.open(url) as ledger:
        log = ledger.model(MODEL)
        events = log.history.events(newest_first=False)[1:]
        recorded = {event.idempotency_key: event.seq for event in events}
        assert sorted(recorded) == sorted(keys)
        assert [event.seq for event in events] == list(range(1, count + 1))
        for answer in answers:
            assert answer == {key: {recorded[key]} for key in answer}
        for key in keys[::25]:
            with pytest.raises(IdempotencyMismatch):
                log.apply(add(-1.0, key))
        assert log.history.head().seq == count


# Two servers on one database


@pytest.fixture
def servers(database_url: str, tmp_path: Path) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        options = ("--model", SERVED, "--database", database_url)
        yield [stack.enter_context(serving(tmp_path / name, *options)) for name in ("one", "other")]


def post(server: Server, value: float, **headers: str) -> httpx2.Response:
    with server.client(**headers) as http:
        sent = {"parameter_name": "2.bias", "update_data": value, "learning_rate": 1.0}
        return http.post("/v1/models/incremental_update", json=sent)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_sqlite_database_is_served_once(database_url: str, tmp_path: Path) -> None:
    options = ("--model", SERVED, "--database", database_url)
    with serving(tmp_path / "one", *options) as server:
        said = Server(tmp_path / "other", *options).refuse_to_start()
        assert f"is served by the server at {server.url}" in said


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_requests_race_over_two_servers_of_one_database(servers: list[Server]) -> None:
    with servers[0].client() as http, ThreadPoolExecutor(64) as pool:

        def together(work: Callable[[int], httpx2.Response]) -> list[httpx2.Response]:
            return list(pool.map(work, range(64)))

        etag = http.get("/v1/models/status").headers["etag"]
        replies = together(lambda n: post(servers[n % 2], 1.0, **{"if-match": etag}))
        assert Counter(reply.status_code for reply in replies) == {200: 1, 412: 63}

        replies = together(lambda n: post(servers[n % 2], 1.0))
        statuses = Counter(reply.status_code for reply in replies)
        assert set(statuses) <= {200, 409}
        ids = {reply.json()["data"]["update_id"] for reply in replies if reply.status_code == 200}
        assert len(ids) == statuses[200]

        replies = together(lambda n: post(servers[n % 2], 1.0, **{"idempotency-key": str(n // 8)}))
        assert {reply.status_code for reply in replies} <= {200, 409}
        by_key: dict[int, set[str]] = {}
        for n, reply in enumerate(replies):
            if reply.status_code == 200:
                by_key.setdefault(n // 8, set()).add(reply.json()["data"]["update_id"])
        assert all(len(ids) == 1 for ids in by_key.values())
        refused = post(servers[1], 2.0, **{"idempotency-key": str(next(iter(by_key)))})
        assert refused.status_code == 422

        applied = http.get("/v1/models/status").json()["total_updates"]
        assert applied == 1 + statuses[200] + len(by_key)
