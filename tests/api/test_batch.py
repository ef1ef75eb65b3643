"""Batches over HTTP, forms of an update, and pinned versions."""

import json
import socket
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from safetensors.numpy import save

from tests.serving import Server
from tests.waiting import until

BATCH = "/v1/models/batch_update"
FILE = {"content-type": "application/octet-stream"}


def send(http: httpx2.Client, tensors: dict[str, Any], **options: Any) -> httpx2.Response:
    arrays = {name: np.asarray(value, dtype=kind_of(name)) for name, value in tensors.items()}
    return http.post(BATCH, content=save(arrays), headers=FILE, params=options)


def kind_of(name: str) -> str:
    return "int64" if name.endswith("@indices") else "float32"


def head(http: httpx2.Client) -> tuple[Any, ...]:
    ready = http.get("/readyz").json()
    return ready["seq"], ready["digest"], newest(http)["seq"]


def newest(http: httpx2.Client) -> dict[str, Any]:
    item: dict[str, Any] = http.get("/v1/models/updates", params={"limit": 1}).json()["data"][0]
    return item


def test_a_batch_is_one_event_and_undone_as_one(http: httpx2.Client) -> None:
    before = http.get("/readyz").json()["digest"]
    reply = send(
        http,
        {
            "2.bias": np.ones(10),
            "0.bias": [1.0, 2.0],
            "0.bias@indices": [5, 3],
            "0.weight@a": np.ones((64, 1)) / 8,
            "0.weight@b": np.ones((1, 64)) / 8,
        },
        learning_rate=1e-6,
        metadata=json.dumps({"run": 7}),
    )
    assert reply.status_code == 200, reply.text
    assert reply.json()["message"] == "Successfully applied 3 updates as one event"
    event = newest(http)
    assert event["id"] == reply.json()["data"]["update_id"]
    assert event["metadata"] == {"run": 7}
    assert event["facts"]["operation"] == "batch"
    assert sorted(update["parameter"] for update in event["facts"]["updates"]) == [
        *("0.bias", "0.weight", "2.bias")
    ]
    assert reply.headers["etag"] == f'"{event["seq"]}"'
    http.post("/v1/models/rollback", json={"version_id": "head~1"}).raise_for_status()
    assert http.get("/readyz").json()["digest"] == before


def test_a_batch_with_a_key_happens_once(http: httpx2.Client) -> None:
    body = save({"2.bias": np.full(10, 1e-6, "f4")})
    headers = {**FILE, "idempotency-key": "a batch"}
    first, again = (http.post(BATCH, content=body, headers=headers) for _ in range(2))
    assert first.json() == again.json()
    other = save({"2.bias": np.full(10, 2e-6, "f4")})
    assert http.post(BATCH, content=other, headers=headers).status_code == 422


@pytest.mark.parametrize(
    ("tensors", "options", "status", "message"),
    [
        ({"nope": [1.0]}, {}, 404, "Parameter 'nope' not found"),
        ({"2.bias": np.ones(10), "0.bias": [1.0]}, {}, 400, "got 1 values"),
        ({"2.bias@indices": [1]}, {}, 400, "needs the values in '2.bias'"),
        ({"0.weight@a": np.ones((32, 1))}, {}, 400, "0.weight@a and 0.weight@b"),
        ({"2.bias": [np.nan] * 10}, {}, 400, "must be finite"),
        ({"2.bias": np.ones(10)}, {"update_type": "add"}, 400, "update_type: Input should be"),
        ({"2.bias": np.ones(10)}, {"learning_rate": "7"}, 400, "less than or equal to 1, got '7'"),
        ({"2.bias": np.ones(10)}, {"lr": "0.1"}, 400, "expected some of learning_rate, metadata"),
        ({"2.bias": np.ones(10)}, {"metadata": "[]"}, 400, "metadata must be a JSON object"),
        ({}, {}, 400, "1 to 4096 updates"),
    ],
)
def test_a_batch_that_does_not_fit_changes_nothing(
    http: httpx2.Client,
    tensors: dict[str, Any],
    options: dict[str, str],
    status: int,
    message: str,
) -> None:
    before = head(http)
    reply = send(http, tensors, **options)
    assert reply.status_code == status, reply.text
    assert message in reply.json()["error"]["message"]
    assert head(http) == before


def test_bodies_that_are_no_batch(http: httpx2.Client) -> None:
    before = head(http)
    for body, headers, message in (
        (b"", FILE, "not a safetensors file"),
        (b"x" * 100_000, FILE, "not a safetensors file"),
        (b"{}", {"content-type": "application/json"}, "application/octet-stream"),
    ):
        reply = http.post(BATCH, content=body, headers=headers)
        assert reply.status_code == 400, reply.text
        assert message in reply.json()["error"]["message"]
    assert head(http) == before


def test_indices_and_factors_in_json(http: httpx2.Client) -> None:
    body = {"parameter_name": "2.bias", "learning_rate": 1e-6}
    url = "/v1/models/incremental_update"
    sparse = http.post(url, json={**body, "update_data": [1.0, 2.0], "indices": [9, 0]})
    assert sparse.json()["success"], sparse.text
    assert newest(http)["facts"]["tensors"][0]["changed"] <= 2
    twice = http.post(url, json={**body, "update_data": 1.0, "indices": [1, 1]})
    assert (twice.status_code, twice.json()["error"]["param"]) == (400, "indices")
    low = {"parameter_name": "0.weight", "learning_rate": 1e-6}
    factors = {"a": [[0.1]] * 64, "b": [[0.1] * 64]}
    assert http.post(url, json={**low, "factors": factors}).json()["success"]
    wrong = http.post(url, json={**low, "factors": {"a": [[0.1]], "b": [[0.1] * 64]}})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "factors")


def test_pinning(http: httpx2.Client) -> None:
    made = http.post("/v1/models/create_version", json={"description": "x"}).json()
    version = made["data"]["version_id"]
    for verb, pinned in (("pin", True), ("unpin", False)):
        reply = http.post(f"/v1/models/versions/{version}/{verb}", json={})
        assert reply.json()["data"] == {"version_id": version, "pinned": pinned}
        assert newest(http)["kind"] == f"version_{verb}ned"
    assert http.post("/v1/models/versions/v99_1/pin", json={}).status_code == 404


def test_retiring(http: httpx2.Client) -> None:
    def named(description: str) -> str:
        reply = http.post("/v1/models/create_version", json={"description": description})
        return str(reply.json()["data"]["version_id"])

    def retire(version: str, key: str | None = None) -> httpx2.Response:
        headers = {"x-reason": "superseded"} | ({"idempotency-key": key} if key else {})
        return http.post(f"/v1/models/versions/{version}/retire", headers=headers)

    old, held, active = named("old"), named("held"), named("active")
    assert "active" in retire(active).json()["error"]["message"]
    http.post(f"/v1/models/versions/{old}/pin")
    pinned = retire(old)
    assert (pinned.status_code, pinned.json()["error"]["param"]) == (400, "version_id")
    assert "pinned" in pinned.json()["error"]["message"]
    http.post(f"/v1/models/versions/{old}/unpin")
    hold = {"version_id": held, "reason": "case 12"}
    hold_id = http.post("/v1/models/holds", json=hold).json()["id"]
    assert "legal hold" in retire(held).json()["error"]["message"]
    http.post(f"/v1/models/holds/{hold_id}/release", json={"reason": "closed"})

    reply = retire(old, "once")
    assert reply.json()["data"] == {"version_id": old}
    event = newest(http)
    assert (event["kind"], event["reason"]) == ("version_retired", "superseded")
    listed = [one["version_id"] for one in http.get("/v1/models/versions").json()["versions"]]
    assert old not in listed
    assert {held, active} <= set(listed)
    assert retire(old, "once").json() == reply.json()
    assert newest(http) == event
    assert retire(old).status_code == retire("v99_1").status_code == 404


def test_a_kill_in_the_middle_of_an_upload_leaves_nothing_behind(tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start()
    try:
        before = server.shown()
        with socket.create_connection(("127.0.0.1", server.port)) as half:
            half.sendall(
                b"POST /v1/models/batch_update HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\n"
                + bytes(1000)
            )
            until(lambda: list(server.folder.glob("upload-*")))
            server.kill()
        assert list(server.folder.glob("upload-*"))
        server.start()
        assert not list(server.folder.glob("upload-*"))
        assert server.shown() == before
    finally:
        server.stop()
