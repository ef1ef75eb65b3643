"""`weightledger serve --engine …` from outside: what an operator and a client see."""

import threading
from pathlib import Path

import httpx2

from tests.engines.replica import QUERY, Replica, update
from tests.engines.tiny_model import answers, checkpoint
from tests.serving import Server, serving
from tests.waiting import until
from weightledger import Ledger


def until_ready(http: httpx2.Client, status: int) -> dict[str, str]:
    """Ask until the server's own polling has noticed."""
    said: list[httpx2.Response] = []

    def reached() -> bool:
        said.append(http.get("/readyz"))
        return said[-1].status_code == status

    until(reached, f"/readyz is not {status}")
    body: dict[str, str] = said[-1].json()
    return body


def test_a_driven_server_over_rest(replica: Replica, folder: Path) -> None:
    options = ("--engine", replica.surface, "--engine-url", replica.url)
    with (
        serving(folder, *options, "--model", str(replica.model)) as server,
        server.client() as http,
    ):
        assert replica.answers() == answers(checkpoint())
        body = {"parameter_name": QUERY, "update_data": update().update_data, "learning_rate": 1}
        reply = http.post("/v1/models/incremental_update", json=body)
        assert reply.json()["success"], reply.text
        after = replica.answers()
        assert after != answers(checkpoint())
        health = http.get("/health").json()
        assert health["engine"]["weight_version"] == f"ledger:2:{health['digest'][:16]}"
        assert http.post("/v1/models/verify", json={}).status_code == 200
        replica.kill()
        assert replica.url in until_ready(http, 503)["detail"]
        refused = http.post("/v1/models/incremental_update", json=body)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_unavailable"
        replica.start()
        until_ready(http, 200)
        assert replica.answers() == after
        assert http.get("/v1/models/updates?limit=1").json()["data"][0]["seq"] == 2


def test_either_side_may_be_started_first(replica: Replica, folder: Path) -> None:
    replica.kill()
    options = ("--engine", replica.surface, "--engine-url", replica.url)
    server = Server(folder, *options, "--model", str(replica.model))
    starting = threading.Thread(target=server.start)
    starting.start()
    try:
        until(lambda: server.log.exists() and "waiting for" in server.output())
        assert f"{replica.surface} at {replica.url}, 600 s at most" in server.output()
        replica.start()
        starting.join()
        with server.client() as http:
            assert http.get("/readyz").status_code == 200
        assert replica.answers() == answers(checkpoint())
    finally:
        server.stop()


def test_a_server_that_never_comes_is_waited_for_as_long_as_one_is_told(
    replica: Replica, folder: Path
) -> None:
    replica.kill()
    options = ("--engine", replica.surface, "--engine-url", replica.url, "--engine-wait-s", "0")
    said = Server(folder, *options, "--model", str(replica.model)).refuse_to_start()
    assert f"{replica.surface} did not answer within --engine-wait-s 0" in said
    assert "Traceback" not in said


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert "--engine-url" in Server(tmp_path / "a", "--engine", "vllm").refuse_to_start()
    options = ("--engine", "vllm", "--engine-url", "http://127.0.0.1:9", "--model", str(tmp_path))
    assert "safetensors files" in Server(tmp_path / "b", *options).refuse_to_start()


def test_a_replica_drives_the_server_beside_it(replica: Replica, folder: Path) -> None:
    """The writer has no engine; the replica's /readyz is that of the server which it drives."""
    replica.kill()
    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
        log = ledger.model(replica.model.name, base=checkpoint())
        seq = log.apply(update()).seq
        options = ("--engine", replica.surface, "--engine-url", replica.url)
        server = Server(folder, *options, "--model", str(replica.model), verb="follow")
        starting = threading.Thread(target=server.start)
        starting.start()
        try:
            until(lambda: server.log.exists() and "waiting for" in server.output())
            replica.start()
            starting.join()
            with server.client() as http:
                ready = http.get("/readyz").json()
                assert (ready["state"], ready["seq"]) == ("ready", seq)
                assert ready["digest"] == log.live.state.value.hex()
                assert ready["engine"]["weight_version"] == f"ledger:{seq}:{ready['digest'][:16]}"
                shown = replica.answers()
                assert shown != answers(checkpoint())
                log.rollback("seq:0")
                until(lambda: http.get("/readyz").json().get("seq") == seq + 1)
                assert replica.answers() == answers(checkpoint())
                replica.kill()
                said = until_ready(http, 503)
                assert said["state"] == "fenced" and replica.url in said["detail"]
                replica.start()
                assert until_ready(http, 200)["digest"] == log.live.state.value.hex()
                assert replica.answers() == answers(checkpoint())
        finally:
            server.stop()
