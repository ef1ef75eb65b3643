"""What replicas measure gets to the database by itself, and decides about a rollout."""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from tests.api.test_command import inside
from tests.conftest import new_database
from tests.serving import Server
from tests.waiting import until
from weightledger import Ledger
from weightledger.ledger.history import rollouts
from weightledger.ledger.sql.roles import grants

ROOT = Path(__file__).parents[2]
MODEL = ("--model", "tests.fleet.slowing:Slowing", "--served-model-name", "slowing")
POLICY = """
metrics = ["latency_ms", "failed", "throughput"]
[rollout]
finish = "never"
"""
NAMES = ("gpu-1", "gpu-2", "gpu-3")
ROWS = {"inputs": [[0.0]]}


class Served:
    """A writer that reads cohorts, and three replicas with the rights of a follower alone."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        policy = folder / "slowing.toml"
        policy.write_text(POLICY)
        at = ("--database", url, "--policy", str(policy))
        self.writer = Server(folder / "data", *at, *MODEL, cwd=ROOT)
        mine = str(httpx2.URL(url).copy_with(username="following"))
        self.replicas = {name: self._replica(folder, name, mine) for name in NAMES}

    def _replica(self, folder: Path, name: str, url: str) -> Server:
        at = ("--database", url, "--replica", name)
        return Server(folder / name, *at, *MODEL, cwd=ROOT, verb="follow")


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("measured")
    with new_database(request, "postgresql", folder) as url, contextlib.ExitStack() as opened:
        fleet = Served(folder, url)
        opened.callback(fleet.writer.stop)
        fleet.writer.start()
        admin: psycopg.Connection[Any] = request.getfixturevalue("postgres_admin")
        with contextlib.suppress(psycopg.errors.DuplicateObject):
            admin.execute("CREATE ROLE following LOGIN")
        with psycopg.connect(url, autocommit=True) as owner:
            for statement in grants("following", follower=True):
                owner.execute(statement)  # type: ignore[arg-type]
        for server in fleet.replicas.values():
            opened.callback(server.stop)
            server.start()
        yield fleet


@contextlib.contextmanager
def asked(servers: Iterator[Server]) -> Iterator[None]:
    """While the block runs, each server is asked again and again."""
    over = threading.Event()

    def ask(server: Server) -> None:
        with server.client() as http:
            while not over.is_set():
                assert http.post("/invocations", json=ROWS).status_code == 200

    threads = [threading.Thread(target=ask, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_canary_that_gets_slow_ends_its_rollout_by_itself(served: Served) -> None:
    with served.writer.client() as http, Ledger.open(served.url, upgrade=False) as ledger:
        before = http.get("/readyz").json()
        started = http.post("/v1/fleet/rollouts", json={"to": "head", "percent": 0}).json()
        rollout = started["data"]["id"]
        places = {name: rollouts.cohort(rollout, name) for name in NAMES}
        canary = min(places, key=lambda name: places[name])
        percent = places[canary] + 1
        http.post(f"/v1/fleet/rollouts/{rollout}/advance", json={"percent": percent})
        update = {"parameter_name": "delay_ms", "update_data": 20.0, "learning_rate": 1.0}
        slow = http.post("/v1/models/incremental_update", json=update)
        assert slow.json()["success"], slow.text
        seq = int(slow.headers["etag"].strip('"'))
        events = ledger.history("slowing").store
        with asked(iter(served.replicas.values())):
            until(
                lambda: (newest := rollouts.newest(events)) is None or not newest.running,
                "the rollout goes on",
                pid=served.writer.process.pid,
            )
        ended = rollouts.newest(events)
        assert ended is not None and (ended.id, ended.status) == (rollout, "aborted")
        told = ended.evidence
        assert told["metric"] in ("latency_ms", "throughput") and told["decided_by"] == "policy"
        assert told["rollout"]["new"] == [canary]
        assert set(told["rollout"]["old"]) <= set(NAMES) - {canary}
        for server in (served.writer, *served.replicas.values()):
            with server.client() as each:
                until(lambda h=each: h.get("/readyz").json()["digest"] == before["digest"])
        measured = http.get(
            "/v1/models/metrics", params={"metric": "latency_ms", "replica": canary, "by": "seq"}
        ).json()["data"]
    of_slow = [one for one in measured if one["first_seq"] == seq]
    assert of_slow and of_slow[0]["replica"] == canary and of_slow[0]["min"] > 20
    for server in served.replicas.values():
        assert "permission denied" not in server.output()


def test_what_a_replica_measured_is_read_by_its_name(served: Served) -> None:
    where = ("--url", served.writer.url)
    for server in served.replicas.values():
        server.stop()  # which writes what there is
    status, out, err = inside("metrics", "--replica", "gpu-2", "--json", *where)
    assert status == 0, err
    rows = json.loads(out)
    assert {row["replica"] for row in rows} == {"gpu-2"}
    names = {"latency_ms", "failed", "items_per_second", "throughput", "memory_usage_mb"}
    assert names <= {row["metric"] for row in rows}


def test_a_replica_is_pushed_nothing(served: Served) -> None:
    replica = served.replicas["gpu-1"]
    if replica.process is None or replica.process.poll() is not None:
        replica.start()
    with replica.client() as http:
        body = {"samples": [{"metric": "accuracy", "value": 0.5}]}
        refused = http.post("/v1/models/metrics", json=body)
        assert refused.status_code == 403, refused.text
        assert f"write to {served.writer.url}" in refused.json()["error"]["message"]
