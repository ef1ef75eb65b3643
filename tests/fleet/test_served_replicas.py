"""`weightledger follow` from outside: what clients and an operator see."""

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from tests.api.test_command import inside
from tests.conftest import new_database
from tests.serving import Server
from tests.waiting import until
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.fleet.served import served
from weightledger.ledger.history.positions import parse_time
from weightledger.ledger.sql.roles import grants

UPDATE = "/v1/models/incremental_update"
BODY = {"parameter_name": "2.bias", "update_data": 0.5}
ROWS = {"inputs": [[0.0] * 64]}


class Fleet:
    """A writer and two replicas of one database; the second hands writes on."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        at = ("--database", url)
        self.writer = Server(folder / "data", *at)
        self.plain = self._replica("one", *at, "--prepares")
        self.proxy = self._replica("two", *at, "--proxy-writes")

    def _replica(self, name: str, *options: str) -> Server:
        """One beside the writer's data folder, which has the model and is not held by it."""
        server = Server(self.writer.folder, *options, "--replica", name, verb="follow")
        server.log = self.writer.folder.parent / f"{name}.log"
        return server


@pytest.fixture(
    scope="module", params=["postgresql", pytest.param("sqlite", marks=pytest.mark.soak)]
)
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


def test_a_replica_that_prepares_answers_what_is_proposed(fleet: Fleet) -> None:
    with Ledger.open(fleet.url, upgrade=False) as ledger:
        store = ledger.history("digits").store
        starts = {row.replica: row.incarnation for row in store.replicas.all()}
        one = "one", starts["one"]
        proposal = store.proposals.propose(b"{}", None, [one], 600.0)
        until(lambda: store.proposals.progress(proposal).attested, pid=fleet.plain.process.pid)
        said = store.proposals.progress(proposal).attested[one]
        assert said.digest is None and "header cannot be read" in str(said.problem)
        store.proposals.withdraw(proposal)


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


def test_what_was_written_is_read_behind_any_replica(fleet: Fleet) -> None:
    with fleet.writer.client() as writer, fleet.plain.client() as http:
        for wait, shown_by in (("all", 2), ("quorum", 2), ("1", 1)):
            done = writer.post(f"{UPDATE}?wait={wait}", json=BODY)
            assert done.headers["x-weights-wait"] == "reached", done.headers
            assert int(done.headers["x-weights-replicas"]) >= shown_by
        assert "x-weights-wait" not in writer.post(f"{UPDATE}?wait=committed", json=BODY).headers
        wrong = writer.post(f"{UPDATE}?wait=some", json=BODY)
        assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "wait"
        done = writer.post(UPDATE, json=BODY)
        seq = done.headers["etag"].strip('"')
        answer = http.post("/invocations", json=ROWS, headers={"X-Weights-Min-Seq": seq})
        assert answer.status_code == 200 and answer.headers["x-weights-seq"] == seq
        bad = http.post("/invocations", json=ROWS, headers={"X-Weights-Min-Seq": "soon"})
        assert bad.status_code == 400 and bad.json()["error"]["param"] == "X-Weights-Min-Seq"
        never = http.post("/invocations", json=ROWS, headers={"X-Weights-Min-Seq": "999999"})
        assert never.status_code == 409 and never.json()["error"]["code"] == "not_shown_yet"


def test_who_served_what_agrees_with_what_replies_said(fleet: Fleet) -> None:
    sampled: list[tuple[str, str, str]] = []
    with fleet.writer.client() as writer, fleet.plain.client() as http:
        for number in range(1000):
            if number % 125 == 0:
                written = writer.post(f"{UPDATE}?wait=all", json=BODY).headers["etag"].strip('"')
                shown(fleet.plain, int(written))  # `wait` gives up on a busy machine
            before = datetime.now(UTC)
            said = http.post("/invocations", json=ROWS).headers
            between = before + (datetime.now(UTC) - before) / 2
            row = (between.isoformat(), said["x-weights-seq"], said["x-weights-digest"])
            sampled.append(row)
        last = writer.post(f"{UPDATE}?wait=all", json=BODY).headers["etag"].strip('"')
        with Ledger.open(fleet.url) as ledger:
            history = ledger.history("digits")
            wrong: list[Any] = []
            for at, seq, digest in sampled:
                moment = parse_time(at)
                assert moment is not None
                told = served(history, "one", moment)
                assert told.known and told.digest is not None
                if (str(told.seq), told.digest.hex()) != (seq, digest):
                    wrong.append((at, seq, told))
        assert wrong == []  # no reply spans a change: each was reported before the next request
        query = {"replica": "one", "at": sampled[500][0]}
        told = http.get("/v1/fleet/served", params=query).json()
        assert (str(told["seq"]), told["known"]) == (sampled[500][1], True)
        assert http.get("/v1/fleet/served", params={**query, "replica": "x"}).status_code == 404
        early = http.get("/v1/fleet/served", params={**query, "at": "2020-01-01T00:00:00Z"}).json()
        assert (early["seq"], early["reason"]) == (None, "it had not begun")
    at = ("--database", fleet.url)
    status, out, _ = inside("fleet", "served", "one", "--at", sampled[500][0], "--json", *at)
    assert (status, json.loads(out)["seq"]) == (0, int(sampled[500][1]))
    status, out, _ = inside("fleet", "served", "one", "--at", "2099-01-01T00:00:00Z", *at)
    assert status == 1 and "it was last heard of at" in out
    status, out, _ = inside("fleet", "status", "--json", *at)
    assert status == 0
    rows = {row["replica"]: row for row in json.loads(out)}
    assert [rows[name]["state"] for name in ("one", "two")] == ["ready", "ready"]
    assert rows["one"]["seq"] == int(last) and rows["one"]["url"] == fleet.plain.url


def test_a_rollout_from_the_command_line(fleet: Fleet) -> None:
    at = ("--url", fleet.writer.url)
    with fleet.writer.client() as http:
        http.post(f"{UPDATE}?wait=all", json=BODY)
        head = http.get("/readyz").json()["seq"]
    status, out, err = inside(
        "rollout", "start", "v0", "--percent", "100", "-m", "try", "--json", *at
    )
    assert status == 0, err
    assert json.loads(out)["running"] is True
    for server in (fleet.plain, fleet.proxy):
        with server.client() as http:
            until(lambda h=http: h.get("/readyz").json()["seq"] == 0, pid=server.process.pid)
            assert http.post("/invocations", json=ROWS).headers["x-weights-seq"] == "0"
    with fleet.writer.client() as http:
        targets = [row["target"] for row in http.get("/v1/fleet").json()["data"]]
        assert targets == ["seq:0", "seq:0"]
        counted = 'weightledger_replicas{model_name="digits",state="ready"} 2.0'
        assert counted in http.get("/metrics").text
        assert http.get("/readyz").json()["seq"] == head  # the writer shows the head
    status, out, err = inside("rollout", "start", "v0", *at)
    assert status == 1 and "finish or abort it first" in err
    status, out, err = inside("rollout", "advance", "--percent", "0", "--json", *at)
    assert status == 0, err
    for server in (fleet.plain, fleet.proxy):
        shown(server, head)
    status, out, err = inside("rollout", "abort", "--json", *at)
    assert status == 0, err
    status, out, err = inside("rollout", "abort", *at)
    assert status == 1 and "no rollout runs" in err
    status, out, _ = inside("rollout", "list", "--json", *at)
    assert [one["status"] for one in json.loads(out)] == ["aborted"]
