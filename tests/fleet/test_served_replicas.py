"""`weightledger follow` from outside: what clients and an operator see."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from tests.conftest import new_database
from tests.serving import Server
from tests.waiting import until
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.sql.roles import grants

UPDATE = "/v1/models/incremental_update"
BODY = {"parameter_name": "2.bias", "update_data": 0.5}
ROWS = {"inputs": [[0.0] * 64]}


class Fleet:
    """A writer and two replicas of one database; the second hands writes on."""

    def __init__(self, folder: Path, url: str) -> None:
        at = ("--database", url)
        self.writer = Server(folder / "data", *at)
        self.plain = self._replica("one", *at)
        self.proxy = self._replica("two", *at, "--proxy-writes")

    def _replica(self, name: str, *options: str) -> Server:
        """One beside the writer's data folder, which has the model and is not held by it."""
        server = Server(self.writer.folder, *options, "--replica", name, verb="follow")
        server.log = self.writer.folder.parent / f"{name}.log"
        return server


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with new_database(request, request.param, folder) as url, contextlib.ExitStack() as opened:
        made = Fleet(folder, url)
        for server in (made.writer, made.plain, made.proxy):
            opened.callback(server.stop)
            server.start()
        yield made


def shown(server: Server, seq: int) -> dict[str, Any]:
    """What `/readyz` says once the state after an event is served."""
    with server.client() as http:
        until(lambda: http.get("/readyz").json()["seq"] >= seq, pid=server.process.pid)
        said: dict[str, Any] = http.get("/readyz").json()
    return said


def test_replicas_serve_what_the_writer_writes(fleet: Fleet) -> None:
    with fleet.writer.client() as http:
        done = http.post(UPDATE, json=BODY)
        seq = int(done.headers["etag"].strip('"'))
        said = http.get("/readyz").json()
        wanted = http.post("/invocations", json=ROWS)
    for server in (fleet.plain, fleet.proxy):
        ready = shown(server, seq)
        assert (ready["state"], ready["digest"]) == ("ready", said["digest"])
        assert ready["lag_events"] == 0 and ready["stale"] is False and ready["reason"] is None
        with server.client() as http:
            answer = http.post("/invocations", json=ROWS)
            assert answer.json() == wanted.json()
            assert answer.headers["x-weights-seq"] == str(seq)
            assert http.get("/v1/models/updates?limit=1").json()["data"][0]["seq"] == seq
            assert http.get("/health").json()["status"] == "ok"
            assert (
                f'weightledger_live_seq{{model_name="digits"}} {seq}' in http.get("/metrics").text
            )


def test_a_replica_refuses_writes_and_says_who_takes_them(fleet: Fleet) -> None:
    with fleet.plain.client() as http:
        before = http.get("/readyz").json()["target_seq"]
        for path, body in (
            (UPDATE, BODY),
            ("/v1/models/create_version", {"description": "x"}),
            ("/v1/models/rollback", {"version_id": "v0"}),
            ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "/nowhere"}),
        ):
            refused = http.post(path, json=body)
            assert refused.status_code == 403, path
            assert refused.json()["error"]["code"] == "disabled"
            assert refused.json()["error"]["message"] == (
                f"replica 'one' follows the log, which is written elsewhere: write to"
                f" {fleet.writer.url}"
            )
        signed = http.get("/checkpoint")
        assert signed.status_code == 403 and "signed where" in signed.json()["error"]["message"]
    with fleet.writer.client() as http:
        assert http.get("/readyz").json()["target_seq"] == before


def test_a_replica_hands_writes_on_where_it_is_told_to(fleet: Fleet) -> None:
    with fleet.proxy.client(**{"X-Actor": "ada", "Idempotency-Key": "once"}) as http:
        done = http.post(UPDATE, json=BODY)
        assert done.status_code == 200, done.text
        again = http.post(UPDATE, json=BODY)
        assert again.json() == done.json()
        event = http.get(f"/v1/models/updates/{done.json()['data']['update_id']}").json()
        assert event["actor"] == "ada"
        wrong = http.post(
            UPDATE, json={**BODY, "parameter_name": "no"}, headers={"Idempotency-Key": "2"}
        )
        assert wrong.status_code == 404 and "'no' not found" in wrong.json()["error"]["message"]
    shown(fleet.plain, event["seq"])


def test_a_role_that_reads_and_reports_is_enough(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with new_database(request, "postgresql", tmp_path) as url:
        admin: psycopg.Connection[Any] = request.getfixturevalue("postgres_admin")
        with Ledger.open(url) as ledger, contextlib.suppress(psycopg.errors.DuplicateObject):
            from weightledger.api.server.digits import load_digits

            module, _ = load_digits(tmp_path / "digits")
            log = ledger.model("digits", base=module)
            admin.execute("CREATE ROLE following LOGIN")
        with psycopg.connect(url, autocommit=True) as owner:
            for statement in grants("following", follower=True):
                owner.execute(statement)  # type: ignore[arg-type]
        mine = httpx2.URL(url).copy_with(username="following")
        server = Server(
            tmp_path / "digits", "--database", str(mine), "--replica", "least", verb="follow"
        )
        try:
            server.start()
            with Ledger.open(url) as ledger:
                log = ledger.model("digits")
                seq = log.apply(IncrementalUpdateRequest("2.bias", 0.25)).seq
                ready = shown(server, seq)
                assert ready["digest"] == log.live.state.value.hex()
                until(
                    lambda: log.history.store.replicas.all()[0].standing.seq == seq,
                    pid=server.process.pid,
                )
            assert "permission denied" not in server.output()
        finally:
            server.stop()
