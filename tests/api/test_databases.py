"""The server and the command on each database: an update, a kill, a restart, a verification."""

import json
from pathlib import Path

from tests import warm
from tests.api.test_command import as_json, inside
from tests.serving import Server, serving
from tests.waiting import until
from weightledger import IncrementalUpdateRequest, Ledger

UPDATE = "/v1/models/incremental_update"


def test_a_served_model_survives_a_kill_on_each_database(
    empty_database_url, tmp_path: Path
) -> None:
    server = Server(tmp_path / "data", "--database", empty_database_url).start()
    try:
        with server.client() as http:
            done = http.post(UPDATE, json={"parameter_name": "2.bias", "update_data": 0.5}).json()
            version = http.post("/v1/models/create_version", json={"description": "kept"}).json()
            digest = http.get("/readyz").json()["digest"]
        server.kill()
        server.start()
        with server.client() as http:
            assert http.get("/readyz").json()["digest"] == digest
            shown = http.get(f"/v1/models/updates/{done['data']['update_id']}")
            assert shown.status_code == 200
            back = http.post("/v1/models/rollback", json={"version_id": "seq:0"})
            assert back.status_code == 200
            back = http.post("/v1/models/rollback", json=version["data"])
            assert back.json()["data"]["description"] == "kept"
            assert http.post("/v1/models/verify", json={}).json()["digest"] == digest
    finally:
        server.stop()
    report = warm.run("verify", "--json", "--database", empty_database_url)
    assert report.returncode == 0, report.stderr
    assert json.loads(report.stdout)["result"] == "ok"
    assert json.loads(report.stdout)["head_digest"] == digest


def test_a_server_follows_what_programs_write_to_its_database(database_url, tmp_path) -> None:
    server = Server(tmp_path / "data", "--database", database_url).start()
    try:
        with server.client() as http, Ledger.open(database_url) as ledger:
            before = http.get("/readyz").json()["seq"]
            ledger.model("digits").apply(IncrementalUpdateRequest("2.bias", 0.25))
            until(lambda: http.get("/readyz").json()["seq"] > before, pid=server.process.pid)
            mine = http.post(UPDATE, json={"parameter_name": "0.bias", "update_data": 0.0})
            assert mine.json()["data"]["update_count"] == 2
            assert http.post("/v1/models/verify", json={}).status_code == 200
    finally:
        server.stop()


def test_commands_find_the_server_through_its_database(database_url, tmp_path) -> None:
    """From another folder, knowing nothing but the database, nobody writes beside a server."""
    at = ("--database", database_url, "--data-dir", str(tmp_path / "elsewhere"))
    with serving(tmp_path / "data", "--database", database_url) as server:
        assert as_json("status", *at)["server"] == server.url
        status, out, _ = inside("update", "2.weight", "--data", "0", "--type", "replace", *at)
        assert (status, "Automatic rollback" in out) == (1, True)
        assert as_json("log", "-n", "1", *at)[0]["request_id"] is not None  # by REST
        status, _, said = inside("update", "2.bias", "--data", "0", "--offline", *at)
        assert status == 1
        assert f"{server.url} serves this ledger" in said
        server.kill()
        assert as_json("status", *at)["server"] is None
        status, _, said = inside("update", "2.bias", "--data", "0", *at)
        assert (status, "--offline" in said) == (1, True)
