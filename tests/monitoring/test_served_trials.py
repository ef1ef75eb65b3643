"""A real server under load: bad updates are undone bit for bit, the same without the fault stay."""

import contextlib
import itertools
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import new_database
from tests.monitoring.targets import SECRET, Target
from tests.serving import Server
from tests.waiting import until

MODEL = "tests.monitoring.faulty:factory"
POLICY = """
base = "safe"
[margins]
latency_ms = 0.05
[trial]
requests = 400
"""
_CLIENTS = 4


class Load:
    """Clients that ask again and again; what they were answered from, by seq."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self.seqs: list[int] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(_CLIENTS)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        chance = random.Random(number)
        with self._server.client() as http:
            while not self._stop.is_set():
                try:
                    reply = http.post("/invocations", json={"inputs": [[chance.random()] * 4]})
                except httpx2.HTTPError:
                    return  # the server was killed
                if "x-weights-seq" in reply.headers:
                    self.seqs.append(int(reply.headers["x-weights-seq"]))


@pytest.fixture(scope="module")
def told() -> Iterator[Target]:
    one = Target()
    yield one
    one.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, told: Target) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    policy = folder / "trying.toml"
    policy.write_text(POLICY)
    options = ("--model", MODEL, "--policy", str(policy), "--webhook-url", told.url)
    one = Server(folder / "data", *options, env={"WEIGHTLEDGER_WEBHOOK_SECRET": SECRET})
    yield one.start()
    one.stop()


def update(server: Server, parameter: str, value: float) -> dict[str, Any]:
    with server.client() as http:
        body = {"parameter_name": parameter, "update_data": value, "update_type": "replace"}
        reply = http.post("/v1/models/incremental_update", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def head(server: Server) -> dict[str, Any]:
    with server.client() as http:
        return dict(http.get("/v1/models/updates", params={"limit": 1}).json()["data"][0])


def ending(server: Server) -> dict[str, Any] | None:
    """The event that ended the newest update's trial; what else was observed is none."""
    with server.client() as http:
        newest = http.get("/v1/models/updates", params={"limit": 10}).json()["data"]
    since = itertools.takewhile(lambda event: event["kind"] != "updated", newest)
    verdicts = {"promoted", "inconclusive"}
    over = (
        event
        for event in since
        if event["kind"] == "rolled_back" or event["facts"].get("verdict") in verdicts
    )
    return next(over, None)


def ended(server: Server) -> dict[str, Any]:
    """The same once it is there, under load."""
    return dict(until(lambda: ending(server), pid=server.process and server.process.pid) or {})


def trials(server: Server) -> list[dict[str, Any]]:
    with server.client() as http:
        return list(http.get("/v1/models/trials").json()["data"])


@pytest.mark.parametrize(
    ("parameter", "value", "metric"), [("delay", 30.0, "latency_ms"), ("fails", 0.1, "failed")]
)
def test_a_fault_is_undone_bit_for_bit(
    server: Server, parameter: str, value: float, metric: str
) -> None:
    before = head(server)["state_after"]
    with Load(server):
        assert update(server, parameter, value)["success"]
        event = ended(server)
    evidence = event["facts"]["evidence"]
    assert (event["kind"], event["facts"]["cause"]) == ("rolled_back", "degraded")
    assert evidence["metric"] == metric and evidence["n_after"] <= 2000
    assert event["state_after"] == before and event["actor"].startswith("policy:trying@")
    assert trials(server)[0]["status"] == "rolled back"
    with server.client() as http:
        reply = http.post("/invocations", json={"inputs": [[0.95] * 4]})
        assert reply.headers["x-weights-digest"] == before


def test_a_loss_of_five_points_is_undone_bit_for_bit(server: Server) -> None:
    """Users who know the right answers push how many were, at the state that they came from."""
    before = head(server)["state_after"]
    chance = random.Random(7)
    with server.client() as http:
        assert update(server, "wrong", 0.05)["success"]
        of = head(server)["seq"]
        for _ in range(60):
            samples = []
            for _ in range(20):
                rows = [[chance.random()] for _ in range(25)]
                reply = http.post("/invocations", json={"inputs": rows})
                right = [row[0] > 0 for row in reply.json()["predictions"]]
                seq = int(reply.headers["x-weights-seq"])
                samples.append({"metric": "accuracy", "value": sum(right) / 25, "seq": seq})
            pushed = http.post("/v1/models/metrics", json={"samples": samples})
            assert pushed.json()["data"]["accepted"] == 20
            if ending(server):
                break
        event = ended(server)
        shown = http.get("/v1/models/trials/update_3/evidence").json()
    evidence = event["facts"]["evidence"]
    assert (event["kind"], event["facts"]["from_seq"]) == ("rolled_back", of)
    assert evidence["metric"] == "accuracy" and evidence["n_after"] <= 500
    assert evidence["before"] - evidence["after"] == pytest.approx(0.05, abs=0.02)
    assert event["state_after"] == before and evidence["decided_at"] <= event["recorded_at"]
    (series,) = [one for one in shown["series"] if one["metric"] == "accuracy"]
    last = series["points"][-1]
    assert last["lower"] >= series["limit"] and last["statistic"] >= series["needed"]


def test_an_address_is_told_of_what_was_undone(server: Server, told: Target) -> None:
    until(lambda: sum(b"rolled_back" in body for _, body in told.got) >= 2)
    (alert, *_) = [json.loads(body) for _, body in told.got if b"weightledger.rolled_back" in body]
    assert alert["data"]["alert"] is True and alert["data"]["facts"]["cause"] == "degraded"
    assert all(headers["webhook-signature"].startswith("v1,") for headers, _ in told.got)


def test_the_same_update_without_the_fault_stays(server: Server) -> None:
    with Load(server) as load:
        assert update(server, "weight", 0.25)["success"]
        of = head(server)["seq"]
        event = ended(server)
        seen = set(load.seqs)
    assert event["kind"] == "observed" and event["facts"]["verdict"] == "promoted"
    assert event["facts"]["of"] == of and seen >= {of} and len(seen) == 2
    with server.client() as http:
        replies = [http.post("/invocations", json={"inputs": [[0.0] * 4]}) for _ in range(8)]
    assert {reply.headers["x-weights-seq"] for reply in replies} == {str(of)}


def test_a_key_of_a_request_keeps_it_on_one_state(server: Server) -> None:
    update(server, "weight", 0.5)
    running = trials(server)[0]
    assert running["status"] == "running"
    seen: dict[str, set[str]] = {}
    with server.client() as http:
        for n in range(48):
            key = f"conversation {n % 12}"
            reply = http.post(
                "/invocations", json={"inputs": [[0.0] * 4]}, headers={"x-request-key": key}
            )
            seen.setdefault(key, set()).add(reply.headers["x-weights-seq"])
        assert all(len(seqs) == 1 for seqs in seen.values())
        assert len(set.union(*seen.values())) == 2
        path = f"/v1/models/trials/{running['id']}"
        key = {"idempotency-key": "once"}
        wrong = http.post("/v1/models/trials/update_999/promote")
        assert wrong.status_code == 404 and running["id"] in wrong.json()["error"]["message"]
        first = http.post(f"{path}/abort", headers=key)
        assert first.status_code == 200 and first.json()["data"]["status"] == "aborted"
        assert http.post(f"{path}/abort", headers=key).json() == first.json()
        assert http.post(f"{path}/promote", headers=key).status_code == 422
        assert http.post(f"{path}/promote").status_code == 404
    assert trials(server)[0]["status"] == "aborted"


def test_a_trial_goes_on_after_kill_9(server: Server) -> None:
    update(server, "weight", 0.75)
    running = trials(server)[0]
    with Load(server):
        until(lambda: (trials(server)[0]["requests_new"] or 0) > 20)
        server.kill()
    server.start()
    assert "a trial was interrupted: it goes on" in server.output()
    again = trials(server)[0]
    assert (again["id"], again["status"]) == (running["id"], "running")
    with server.client() as http:
        replies = [http.post("/invocations", json={"inputs": [[0.0] * 4]}) for _ in range(40)]
        states = {reply.headers["x-weights-seq"] for reply in replies}
        assert states == {str(running["of"]), str(running["beside"])}
        path = f"/v1/models/trials/{running['id']}/promote"
        assert http.post(path, headers={"x-actor": "ann"}).status_code == 200
        listed = http.get("/v1/models/trials").json()
    assert listed["data"][0]["status"] == "promoted" and json.dumps(listed)


def test_a_policy_that_contradicts_itself_is_refused_at_start(tmp_path: Path) -> None:
    policy = tmp_path / "odd.toml"
    policy.write_text('base = "safe"\n[trial]\nshare = 2\n')
    one = Server(tmp_path / "data", "--model", MODEL, "--policy", str(policy))
    told = one.refuse_to_start()
    assert "line 3: trial.share must be between 0 and 1" in told
    assert not (tmp_path / "data" / "ledger.db").exists()


def test_one_trial_of_two_servers_ends_in_both(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """On one PostgreSQL: each splits its own requests, and the first verdict is that of both."""
    policy = tmp_path / "trying.toml"
    policy.write_text(POLICY.replace("400", "100000"))  # it ends when somebody says so
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(new_database(request, "postgresql", tmp_path))
        options = ("--model", MODEL, "--policy", str(policy), "--database", url)
        servers = [Server(tmp_path / name, *options) for name in ("one", "other")]
        for server in servers:
            stack.callback(server.stop)
            server.start()
        one, other = servers

        def seen(server: Server) -> set[str]:
            with server.client() as http:
                asked = [http.post("/invocations", json={"inputs": [[0.5] * 4]}) for _ in range(24)]
            return {reply.headers["x-weights-seq"] for reply in asked}

        def split(server: Server, *states: str) -> bool:
            """Both states answer, twice: once it may be the update that came in between."""
            return seen(server) == seen(server) == set(states)

        settled = str(head(one)["state_seq"])
        update(one, "weight", 0.5)
        first = str(head(one)["seq"])
        for server in servers:
            until(lambda server=server: split(server, settled, first))  # type: ignore[misc]
        with other.client() as http:
            reply = http.post("/v1/models/trials/update_1/promote")
            assert reply.status_code == 200, reply.text
        for server in servers:
            until(lambda server=server: seen(server) == {first})  # type: ignore[misc]
        update(other, "weight", 0.75)
        second = str(head(other)["seq"])
        until(lambda: split(one, first, second))
        with one.client() as http:
            reply = http.post("/v1/models/trials/update_2/abort")
            assert reply.status_code == 200, reply.text
        undone = str(head(one)["seq"])
        for server in servers:
            until(lambda server=server: seen(server) == {undone})  # type: ignore[misc]
        statuses = [trial["status"] for trial in trials(one)]
        assert statuses == [trial["status"] for trial in trials(other)] == ["aborted", "promoted"]


@pytest.mark.soak  # ten values of a gauge are ten seconds
def test_a_leak_is_undone_long_before_memory_has_doubled(tmp_path: Path) -> None:
    options = ("--model", MODEL, "--auto-rollback-metrics", "memory_usage_mb")
    one = Server(tmp_path / "data", *options)
    one.start()

    def memory(seq: int) -> float:
        with one.client() as http:
            query = {"metric": "memory_usage_mb", "min_seq": seq, "max_seq": seq}
            listed = http.get("/v1/models/metrics", params=query).json()["data"]
        return float(listed[0]["max"]) if listed else 0.0

    try:
        before = head(one)
        with Load(one):
            until(lambda: memory(0) > 0, pid=one.process and one.process.pid)
            assert update(one, "leak", 0.25)["success"]
            leaking = head(one)["seq"]
            event = ended(one)
        assert event["kind"] == "rolled_back" and event["state_after"] == before["state_after"]
        assert event["facts"]["evidence"]["metric"] == "memory_usage_mb"
        assert memory(leaking) < 2 * memory(0)
    finally:
        one.stop()
