"""kill -9 of a real server at random moments: nothing acknowledged is lost, nothing half there."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from tests import patient
from tests.serving import Server
from weightledger import Ledger
from weightledger.ledger.audit.verify import verify

MODEL = "tests.faults.models:factory"
WRITERS = 2
MOST_ANSWERS = 20
LONGEST_WRITE_S = 0.04

Request = tuple[str, dict[str, object]]


def an_update(chance: random.Random) -> Request:
    """A payload beside its event or a blob of its own (a snapshot follows every few of those)."""
    parameter = chance.choice(["0.weight", "0.weight", "0.bias", "2.bias", "2.weight"])
    sent = {"parameter_name": parameter, "update_data": chance.uniform(-1, 1)}
    return "incremental_update", sent


def an_update_version_or_rollback(chance: random.Random) -> Request:
    kind = chance.choice(["update", "update", "version", "rollback"])
    if kind == "update":
        return an_update(chance)
    if kind == "version":
        return "create_version", {"description": f"Named at {chance.random()}"}
    return "rollback", {"version_id": chance.choice(["seq:0", "head~1", "head~3", "head"])}


STREAMS = (an_update_version_or_rollback, an_update)


@dataclass
class Client(threading.Thread):
    """Sends requests one after the other, each with a key of its own, until the server is gone."""

    url: str
    chance: random.Random
    make: Callable[[random.Random], Request]
    acknowledged: dict[str, dict] = field(default_factory=dict)
    unanswered: tuple[str, Request] | None = None
    refused: str | None = None

    def __post_init__(self) -> None:
        super().__init__()

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        with patient.Client(base_url=self.url) as http:
            while self.refused is None:
                key, request = f"{self.chance.getrandbits(64):016x}", self.make(self.chance)
                self.unanswered = key, request
                try:
                    reply = send(http, key, request)
                except httpx2.HTTPError:
                    return
                if reply.status_code == 404 and "head~" in reply.text:
                    continue  # the log is still shorter than that
                if reply.status_code != 200:
                    self.refused = reply.text
                    return
                self.acknowledged[key] = reply.json()["data"]


def send(http: httpx2.Client, key: str, request: Request) -> httpx2.Response:
    route, body = request
    return http.post(f"/v1/models/{route}", json=body, headers={"idempotency-key": key})


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.soak)])
def test_kill_at_random_moments_loses_and_doubles_nothing(tmp_path: Path, kills: int) -> None:
    """One folder, killed under updates alone and under updates, versions and rollbacks in turn."""
    folder, chance = tmp_path / "data", random.Random()
    options = ("--model", MODEL, "--checkpoint-interval", "7", "--max-versions", "4")
    server = Server(folder, *options).start()
    acknowledged: dict[str, dict] = {}
    try:
        for round_ in range(kills):
            make = STREAMS[round_ % len(STREAMS)]
            clients = [
                Client(server.url, random.Random(chance.random()), make) for _ in range(WRITERS)
            ]
            for client in clients:
                client.start()
            wait_for_answers(clients, chance.randint(1, MOST_ANSWERS))
            time.sleep(chance.uniform(0, LONGEST_WRITE_S))
            server.kill()
            for client in clients:
                client.join()
            assert [client.refused for client in clients] == [None] * WRITERS
            fresh = {key: data for client in clients for key, data in client.acknowledged.items()}
            acknowledged |= fresh
            unanswered = [client.unanswered for client in clients if client.unanswered]

            keys = recorded_keys(folder)
            assert set(acknowledged) <= set(keys), "an acknowledged event is lost"
            assert set(keys) <= {*acknowledged, *(key for key, _ in unanswered)}
            assert set(keys.values()) <= {1}

            server.start()
            with server.client() as http:
                for key, data in fresh.items():
                    name = data.get("update_id") or data.get("version_id")
                    if name is not None:
                        event = http.get(f"/v1/models/updates/{name}")
                        assert event.status_code == 200, event.text
                        assert event.json()["idempotency_key"] == key
                check_live(http)
                for key, request in unanswered:
                    reply = send(http, key, request)
                    if reply.status_code == 404 and "head~" in reply.text:
                        continue
                    assert reply.status_code == 200, reply.text
                    acknowledged[key] = reply.json()["data"]
                check_live(http)
            check_log(folder, acknowledged)
    finally:
        server.stop()


def wait_for_answers(clients: list[Client], count: int) -> None:
    while sum(len(client.acknowledged) for client in clients) < count:
        assert all(client.is_alive() for client in clients), [c.refused for c in clients]
        time.sleep(0.001)


def check_live(http: httpx2.Client) -> None:
    """The tensors that are served have the digest of the head."""
    live = http.post("/v1/models/verify", json={})
    assert live.status_code == 200, live.text
    head = http.get("/v1/models/updates", params={"limit": 1}).json()["data"][0]
    assert live.json()["digest"] == head["state_after"]
    assert live.json()["seq"] == head["state_seq"]


def check_log(folder: Path, acknowledged: dict[str, dict]) -> None:
    """Every event verifies, and each request has led to exactly one."""
    with Ledger.open(f"sqlite:///{folder / 'ledger.db'}", upgrade=False) as ledger:
        report = verify(ledger.history(MODEL))
    assert report.problem is None
    assert recorded_keys(folder) == dict.fromkeys(acknowledged, 1)


def recorded_keys(folder: Path) -> Counter[str]:
    """How many events each idempotency key has, read while no server has to run."""
    with Ledger.open(f"sqlite:///{folder / 'ledger.db'}", upgrade=False) as ledger:
        events = ledger.history(MODEL).events()
    return Counter(event.idempotency_key for event in events if event.idempotency_key is not None)
