"""Writers that race, in one process and in several: one order, one event a request, one winner."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from tests.faults import folders, models
from tests.faults.children import Children
from tests.faults.folders import MODEL
from tests.serving import Server, serving
from tests.waiting import PATIENCE_S, until
from weightledger import TorchEngine
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import IdempotencyMismatch, PreconditionFailed, StorageBusy
from weightledger.ledger.log import Log
from weightledger.ledger.writing.caller import Caller


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


@pytest.fixture
def log(folder: Path) -> Iterator[Log]:
    with folders.opened(folder) as ledger:
        yield ledger.model(MODEL, engine=TorchEngine(models.factory()))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("races") / "data", "--model", MODEL) as running:
        yield running


def add(value: float, **fields: object):
    """Adds to 2.bias, whose sum then tells how many such updates were applied."""
    made = folders.request("2.bias", value, learning_rate=1.0, **fields)
    made.update_type = "additive"
    return made


def together(count: int, work: Callable[[int], object]) -> list[object]:
    """Run work(0) … work(count - 1) in threads that start at once; results or exceptions."""
    barrier = threading.Barrier(count, timeout=PATIENCE_S)

    def one(number: int) -> object:
        barrier.wait()
        try:
            return work(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def post(server: Server, key: str | None, value: float, **headers: str) -> httpx2.Response:
    with server.client(**headers) as http:
        sent = {"parameter_name": "2.bias", "update_data": value, "learning_rate": 1.0}
        given = {} if key is None else {"idempotency-key": key}
        return http.post("/v1/models/incremental_update", json=sent, headers=given)


# Processes. Each opens the database of a folder for itself.

PROCESSES = 4


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    made = Children(PROCESSES)
    yield made
    made.end()


def register(folder: Path, seed: int = 1) -> str:
    """Register the model, or adopt what another has registered; the digest served afterwards."""
    with pytest.MonkeyPatch.context() as patch, folders.opened(folder) as ledger:
        patch.setenv(models.SEED, str(seed))
        log = ledger.model(MODEL, engine=TorchEngine(models.factory()))
        assert log.verify_live()[1].value == log.live.state.value
        return log.live.state.value.hex()


def write_keys(folder: Path, keys: list[str], times: int) -> list[int]:
    """Send the update of each key several times; the seqs that were answered."""
    with folders.opened(folder) as ledger:
        log = ledger.model(MODEL, engine=TorchEngine(models.factory()))
        return [log.apply(add(1.0, idempotency_key=key)).seq for _ in range(times) for key in keys]


def write_expecting(folder: Path, expected: int, writers: int) -> list[str]:
    """Outcomes of several writers of one process that all expect the same seq."""
    with folders.opened(folder) as ledger:
        log = ledger.model(MODEL, engine=TorchEngine(models.factory()))
        outcomes = together(writers, lambda n: log.apply(add(1.0, expected_seq=expected)))
        return [type(outcome).__name__ for outcome in outcomes]


def write_many(folder: Path, count: int) -> list[int]:
    with folders.opened(folder) as ledger:
        log = ledger.model(MODEL, engine=TorchEngine(models.factory()))
        return [until_applied(log) for _ in range(count)]


def until_applied(log: Log) -> int:
    while True:
        with contextlib.suppress(StorageBusy):  # other writers won too often: it may be tried again
            return log.apply(add(1.0)).seq


# With an expected seq


def test_of_64_writers_that_expect_the_same_seq_one_wins(log: Log) -> None:
    outcomes = together(64, lambda n: log.apply(add(1.0, expected_seq=0)))
    assert Counter(type(outcome).__name__ for outcome in outcomes) == {
        "Event": 1,
        "PreconditionFailed": 63,
    }
    losers = [outcome for outcome in outcomes if isinstance(outcome, PreconditionFailed)]
    assert {loser.head_seq for loser in losers} == {1}
    assert log.history.head().seq == 1


def test_of_64_requests_with_the_same_if_match_one_wins(server: Server) -> None:
    with server.client() as http:
        etag = http.get("/v1/models/status").headers["etag"]
    replies = together(64, lambda n: post(server, None, 1.0, **{"if-match": etag}))
    assert Counter(reply.status_code for reply in replies) == {200: 1, 412: 63}
    (won,) = (reply for reply in replies if reply.status_code == 200)
    assert {reply.headers["etag"] for reply in replies if reply.status_code == 412} == {
        won.headers["etag"]
    }


def test_of_64_writers_in_4_processes_that_expect_the_same_seq_one_wins(
    folder: Path, children: Children
) -> None:
    register(folder)
    answers = children.run(write_expecting, *[(folder, 0, 16)] * PROCESSES)
    outcomes = Counter(name for names in answers for name in names)
    assert outcomes == {"Event": 1, "PreconditionFailed": 63}
    with folders.opened(folder) as ledger:
        assert ledger.history(MODEL).head().seq == 1


# Without one


def test_64_writers_without_an_expected_seq_are_all_applied(log: Log) -> None:
    before = log.state()["2.bias"]
    outcomes = together(64, lambda n: log.apply(add(1.0)))
    applied = [outcome for outcome in outcomes if not isinstance(outcome, StorageBusy)]
    assert sorted(event.seq for event in applied) == list(range(1, len(applied) + 1))
    assert len(applied) == 64
    for _ in range(64):
        before = before + 1.0
    assert torch.equal(log.state()["2.bias"], before)
    assert log.verify_live()[1].value == log.live.state.value == log.history.head().state_after


def test_64_requests_without_if_match_are_all_applied(server: Server) -> None:
    with server.client() as http:
        before = http.get("/v1/models/status").json()["total_updates"]
        replies = together(64, lambda n: post(server, None, 1.0))
        assert Counter(reply.status_code for reply in replies) == {200: 64}
        ids = {reply.json()["data"]["update_id"] for reply in replies}
        assert len(ids) == 64
        assert http.get("/v1/models/status").json()["total_updates"] == before + 64


# Idempotency keys


def test_many_retries_with_one_key_lead_to_one_event(log: Log) -> None:
    outcomes = together(32, lambda n: log.apply(add(1.0, idempotency_key="one")))
    assert {getattr(outcome, "seq", outcome) for outcome in outcomes} == {1}
    assert log.history.head().seq == 1


def test_retries_from_several_processes_lead_to_one_event_a_key(
    folder: Path, children: Children
) -> None:
    register(folder)
    keys = [f"key {number}" for number in range(6)]
    orders = (keys, keys[::-1], keys[3:] + keys[:3], keys)
    answers = children.run(write_keys, *[(folder, order, 2) for order in orders])
    with folders.opened(folder) as ledger:
        history = ledger.history(MODEL)
        recorded = {event.idempotency_key: event.seq for event in history.events()}
        del recorded[None]
        assert sorted(recorded) == keys
        assert sorted(recorded.values()) == list(range(1, 7))
        for order, answer in zip(orders, answers, strict=True):
            assert answer == [recorded[key] for key in order] * 2
        assert verify(history).problem is None


def test_retries_over_http_lead_to_one_event(server: Server) -> None:
    replies = together(32, lambda n: post(server, "retried", 1.0))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["data"]["update_id"] for reply in replies}) == 1


def test_of_two_requests_with_one_key_one_is_refused(log: Log, server: Server) -> None:
    outcomes = together(16, lambda n: log.apply(add(float(n % 2), idempotency_key="shared")))
    assert Counter(type(outcome).__name__ for outcome in outcomes) == {
        "Event": 8,
        "IdempotencyMismatch": 8,
    }
    assert log.history.head().seq == 1
    with pytest.raises(IdempotencyMismatch):
        log.rollback("seq:0", caller=Caller(idempotency_key="shared"))
    replies = together(16, lambda n: post(server, "shared", float(n % 2)))
    assert Counter(reply.status_code for reply in replies) == {200: 8, 422: 8}


# Several processes on one log


def test_processes_that_register_one_model_share_its_first_event(
    tmp_path: Path, children: Children
) -> None:
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        answers = children.run(register, *[(folder,)] * PROCESSES)
        with folders.opened(folder) as ledger:
            (registered,) = ledger.history(MODEL).events()
            assert answers == [registered.state_after.hex()] * PROCESSES


def test_processes_that_register_other_weights_are_refused(
    tmp_path: Path, children: Children
) -> None:
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        answers = children.run(register, *[(folder, 1 + n % 2) for n in range(PROCESSES)])
        with folders.opened(folder) as ledger:
            (registered,) = ledger.history(MODEL).events()
            assert verify(ledger.history(MODEL)).problem is None
        won, lost = answers[::2], answers[1::2]
        if lost[0] == registered.state_after.hex():
            won, lost = lost, won
        assert won == [registered.state_after.hex()] * 2
        assert lost == ["WeightsMismatch"] * 2


def answer_at(http: httpx2.Client, inputs: Any, seq: int) -> httpx2.Response | None:
    """The reply, if it was computed from the state after this event."""
    reply = http.post("/invocations", json=inputs)
    return reply if reply.headers["x-weights-seq"] == str(seq) else None


def test_a_library_writer_beside_a_server_is_followed(server: Server) -> None:
    inputs = {"inputs": [[1.0] * 400]}
    with server.client() as http, folders.opened(server.folder) as ledger:
        log = ledger.model(MODEL, engine=TorchEngine(models.factory()))
        for value in (2.0, -1.0):
            written = log.apply(add(value))
            reply = until(
                partial(answer_at, http, inputs, written.seq), "the server does not follow"
            )
            assert reply.headers["x-weights-digest"] == written.state_after.hex()
            with log.projector.engine.lease() as live, torch.inference_mode():
                own = live.module(torch.ones(1, 400))
            assert torch.equal(torch.tensor(reply.json()["predictions"]), own)
        written = log.apply(add(4.0))
        reply = post(server, None, 8.0)
        assert reply.headers["etag"] == f'"{written.seq + 1}"'
        before = log.state(f"seq:{written.seq}")["2.bias"]
        assert torch.equal(log.state("head")["2.bias"], before + 8.0)
        log.catch_up()
        assert http.post("/v1/models/verify", json={}).json()["digest"] == (
            log.live.state.value.hex()
        )
        assert verify(log.history).problem is None


def test_a_reader_that_tails_by_seq_misses_and_doubles_nothing(
    folder: Path, children: Children
) -> None:
    register(folder)
    each = 40
    seen: list[int] = []
    with folders.opened(folder) as ledger, ThreadPoolExecutor(1) as background:
        history = ledger.history(MODEL)
        written = background.submit(children.run, write_many, *[(folder, each)] * PROCESSES)
        while True:
            ended = written.done()
            start = seen[-1] + 1 if seen else 0
            seen += [event.seq for event in history.store.scan(start)]
            if ended:
                break
            time.sleep(0.005)
        answers = [seq for answer in written.result() for seq in answer]
        assert seen == list(range(1 + PROCESSES * each))
        assert sorted(answers) == seen[1:]
        assert verify(history).problem is None
