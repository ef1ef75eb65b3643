"""The two-person rule at a server with keys: by REST and by command."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.test_command import inside
from tests.in_process import Here, here
from weightledger import InvalidRequest
from weightledger.api.server.serve import serve
from weightledger.api.server.settings import Settings

APPROVALS = "/v1/models/approvals"
UPDATE = {"parameter_name": "bias", "update_data": 1.0, "learning_rate": 1.0}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    folder = tmp_path_factory.mktemp("approvals") / "data"
    with here(
        folder, two_person_rule=True, auto_rollback_threshold=0.0, api_key="wl_static"
    ) as server:
        yield server


@pytest.fixture(scope="module")
def people(running: Here) -> Iterator[dict[str, httpx2.Client]]:
    """A client for each of three keys."""
    scopes = {"ana": "write", "bo": "write", "eve": "read"}
    made = {name: running.manager.ledger.keys.create(name, scope) for name, scope in scopes.items()}
    clients = {
        name: running.client(authorization=f"Bearer {issued.secret}")
        for name, issued in made.items()
    }
    clients["bo"].headers["x-key"] = made["bo"].secret
    yield clients
    for client in clients.values():
        client.close()


def asked(client: httpx2.Client, path: str = "incremental_update", **body: Any) -> str:
    reply = client.post(f"/v1/models/{path}", json=body or UPDATE)
    assert reply.status_code == 202, reply.text
    told = reply.json()
    assert told["success"] is False and "waits for somebody else" in told["message"]
    return str(told["data"]["approval_id"])


def decide(client: httpx2.Client, name: str, verb: str) -> httpx2.Response:
    return client.post(f"{APPROVALS}/{name}/{verb}")


def test_it_takes_two(people: dict[str, httpx2.Client]) -> None:
    ana, bo, eve = people["ana"], people["bo"], people["eve"]
    before = ana.get("/v1/models/status").json()["total_updates"]
    name = asked(ana)
    (first, *_) = eve.get(APPROVALS, params={"state": "pending"}).json()["data"]
    assert (first["id"], first["requested_by"]) == (name, "ana")
    assert first["request"]["updates"][0]["parameter"] == "bias"
    for client, status in ((eve, 403), (ana, 403)):
        reply = decide(client, name, "approve")
        assert (reply.status_code, set(reply.json()["error"])) == (
            status,
            {"message", "type", "param", "code"},
        )
    done = decide(bo, name, "approve")
    assert done.status_code == 200
    assert (done.json()["state"], done.json()["decided_by"]) == ("carried out", "bo")
    other = asked(ana)
    assert decide(ana, other, "reject").json()["error"]["code"] == "not_allowed"
    assert decide(bo, other, "reject").status_code == 200
    assert decide(bo, name, "approve").status_code == 409
    assert decide(bo, "approval_99", "reject").status_code == 404
    event = ana.get(f"/v1/models/updates/{done.json()['outcome']}").json()
    assert (event["actor"], event["kind"]) == ("ana", "updated")
    assert ana.get("/v1/models/status").json()["total_updates"] == before + 1


def test_every_write_waits(people: dict[str, httpx2.Client]) -> None:
    ana, bo = people["ana"], people["bo"]
    names = [
        asked(ana, "create_version", description="named"),
        asked(ana, "rollback", version_id="seq:0"),
    ]
    for name in names:
        assert decide(bo, name, "reject").json()["state"] == "rejected"
    assert [one["state"] for one in ana.get(APPROVALS, params={"limit": 2}).json()["data"]] == [
        "rejected",
        "rejected",
    ]
    for wrong in ({"state": "x"}, {"limit": 0}, {"after": "x"}):
        assert ana.get(APPROVALS, params=wrong).status_code == 400


def test_by_command(running: Here, people: dict[str, httpx2.Client]) -> None:
    name = asked(people["ana"])
    key = people["bo"].headers["x-key"]
    where = ("--url", running.url, "--api-key", key, "--json")
    status, out, err = inside("approvals", "list", "--pending", *where)
    assert status == 0, err
    assert [one["id"] for one in json.loads(out)] == [name]
    offline = inside("approvals", "list", "--pending", "-q", "--data-dir", str(running.folder))
    assert offline[1].split() == [name]
    status, out, err = inside("approvals", "approve", name, "-m", "fine", *where)
    assert status == 0, err
    assert json.loads(out)["state"] == "carried out"
    asked_again = inside("version", "create", "by bo", *where)
    assert asked_again[0] == 1 and "waits for somebody else" in asked_again[2]
    pending = json.loads(inside("approvals", "list", "--pending", *where)[1])
    status, _, err = inside("approvals", "reject", pending[0]["id"], *where)
    assert status == 1 and "second person" in err
    assert decide(people["ana"], pending[0]["id"], "reject").status_code == 200


def test_rollouts_wait_by_rest_and_by_command(
    running: Here, people: dict[str, httpx2.Client]
) -> None:
    ana, bo = people["ana"], people["bo"]
    rollouts = "/v1/fleet/rollouts"
    decide(bo, asked(ana), "approve")
    good = running.manager.log.live.head.node

    def ask(path: str = "", **body: Any) -> str:
        reply = ana.post(rollouts + path, json=body)
        assert reply.status_code == 202, reply.text
        return str(reply.json()["data"]["approval_id"])

    def newest() -> dict[str, Any]:
        listed = ana.get(rollouts).json()["data"]
        return dict(listed[0]) if listed else {}

    start = ask(to="seq:0", percent=25)
    assert newest() == {}
    assert decide(ana, start, "approve").status_code == 403
    assert decide(bo, start, "approve").json()["state"] == "carried out"
    begun = newest()
    assert (begun["status"], begun["percent"]) == ("started", 25)
    assert decide(bo, ask(f"/{begun['id']}/finish"), "reject").json()["state"] == "rejected"
    ask_again = ask(f"/{begun['id']}/advance", percent=50)
    key = bo.headers["x-key"]
    where = ("--url", running.url, "--api-key", key)
    status, _, err = inside("rollout", "abort", "-m", "slower", *where)
    assert status == 1 and "waits for somebody else than 'bo'" in err
    assert newest() == begun  # no replica and no weight moved
    assert inside("approvals", "approve", ask_again, *where)[0] == 0
    assert newest()["percent"] == 50
    (waiting,) = ana.get(APPROVALS, params={"state": "pending"}).json()["data"]
    assert waiting["request"]["rollout"] == begun["id"]
    assert decide(ana, waiting["id"], "approve").json()["state"] == "carried out"
    assert (newest()["status"], newest()["running"]) == ("aborted", False)
    assert running.manager.log.live.head.node == good


def test_holds_and_redactions_wait_too(running: Here, people: dict[str, httpx2.Client]) -> None:
    ana, bo = people["ana"], people["bo"]
    running.manager.log.create_initial_version()
    decided = decide(bo, asked(ana, "holds", version_id="v0", reason="case 12"), "approve").json()
    assert decided["state"] == "carried out"
    (hold,) = ana.get("/v1/models/holds", params={"standing": True}).json()["data"]
    assert (hold["placed_by"], hold["reason"], hold["released_at"]) == ("ana", "case 12", None)
    name = asked(ana, f"holds/{hold['id']}/release", reason="closed")
    assert bo.get("/v1/models/holds", params={"standing": True}).json()["data"] == [hold]
    decide(bo, name, "approve")
    assert ana.get("/v1/models/holds", params={"standing": True}).json()["data"] == []
    (told,) = bo.get("/v1/models/holds").json()["data"]
    assert (told["released_by"], told["release_reason"]) == ("ana", "closed")

    body = {"events": [decided["outcome"]], "fields": ["reason"], "reason": "request 118"}
    assert ana.post("/v1/models/redact", json=body).status_code == 403  # it takes an admin
    with running.client(authorization="Bearer wl_static") as admin:
        waiting = asked(admin, "redact", **body)
        assert ana.get("/v1/models/holds").json()["data"][0]["reason"] == "case 12"
        done = decide(bo, waiting, "approve").json()
    assert ana.get("/v1/models/holds").json()["data"][0]["reason"] is None
    event = ana.get(f"/v1/models/updates/{done['outcome']}").json()
    assert (event["kind"], event["actor"], event["reason"]) == (
        "redacted",
        "api-key",
        "request 118",
    )
    url, key = running.url, bo.headers["x-key"]
    status, _, err = inside("redact", "v0", "-m", "x", "--url", url, "--api-key", key)
    assert status == 1 and "wants a key with scope admin" in err


def test_without_keys_there_is_nobody_to_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="weightledger keys create"):
        serve(Settings(data_dir=tmp_path / "data", two_person_rule=True))


def test_nobody_becomes_two_people_over_http(running: Here) -> None:
    with running.client(authorization="Bearer wl_static") as http:
        for path, body in (("", {"name": "ana too"}), ("/rotate", {"name": "bo"})):
            refused = http.post(f"/v1/keys{path}", json=body)
            assert refused.status_code == 403 and "two people" in refused.json()["error"]["message"]
        assert "ana too" not in http.get("/v1/keys").text
