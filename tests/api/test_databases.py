"""The server and the command on each database: an update, a kill, a restart, a verification."""

import json
import subprocess
import sys
from pathlib import Path

import httpx2

from tests.serving import Server

UPDATE = "/v1/models/incremental_update"


def test_a_served_model_survives_a_kill_on_each_database(database_url, tmp_path: Path) -> None:
    server = Server(tmp_path / "data", "--database", database_url).start()
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
    report = subprocess.run(
        [
            sys.executable,
            "-m",
            "weightledger",
            "verify",
            "--json",
            "--database",
            database_url,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(report.stdout)["result"] == "ok"
    assert json.loads(report.stdout)["head_digest"] == digest


def test_a_server_follows_what_others_write_to_its_database(database_url, tmp_path) -> None:
    server = Server(tmp_path / "data", "--database", database_url).start()
    writer = [
        sys.executable,
        "-m",
        "weightledger",
        "update",
        "2.bias",
        "--data",
        "0.25",
        "--lr",
        "1",
    ]
    elsewhere = ["--data-dir", str(tmp_path / "elsewhere"), "--database", database_url]
    try:
        with server.client() as http:
            before = http.get("/readyz").json()["seq"]
            subprocess.run(writer + elsewhere, check=True, capture_output=True)
            assert _followed(http, before)
            mine = http.post(UPDATE, json={"parameter_name": "0.bias", "update_data": 0.0})
            assert mine.json()["data"]["update_count"] == 2
            assert http.post("/v1/models/verify", json={}).status_code == 200
    finally:
        server.stop()


def _followed(http: httpx2.Client, before: int) -> bool:
    """Whether live weights come to show another writer's event; polling takes a moment."""
    return any(http.get("/readyz").json()["seq"] > before for _ in range(2000))
