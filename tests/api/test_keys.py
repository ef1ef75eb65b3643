"""API keys at a real server and by command: scopes, names, changes while it runs."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import torch

from tests import patient
from tests.api.test_command import inside
from tests.in_process import Here, here
from tests.serving import serving
from tests.waiting import PATIENCE_S, until
from weightledger import DynamicModelManager, DynamicUpdateConfig, InvalidRequest
from weightledger.api.rest import documentation, scopes
from weightledger.api.rest.authentication import _AT_ONCE_S, is_open
from weightledger.api.server.app import create_app
from weightledger.api.server.serve import serve
from weightledger.api.server.settings import Settings

STATIC = "wl_static"
UPDATE = {"parameter_name": "bias", "update_data": 0.001}


def keys(folder: Path, *words: str) -> Any:
    """What a command about keys prints as JSON."""
    status, out, err = inside("keys", *words, "--data-dir", str(folder), "--json")
    assert status == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    with here(tmp_path_factory.mktemp("keys") / "data", api_key=STATIC) as server:
        yield server


@pytest.fixture(scope="module")
def made(running: Here) -> dict[str, str]:
    """A key of each scope, by its scope."""
    return {
        scope: keys(running.folder, "create", f"a {scope} key", "--scope", scope)["key"]
        for scope in ("read", "write", "admin")
    }


def client(server: Here, key: str, **headers: str) -> httpx2.Client:
    return server.client(authorization=f"Bearer {key}", **headers)


def test_every_route_declares_what_key_it_wants(tmp_path: Path) -> None:
    manager = DynamicModelManager(
        torch.nn.Linear(2, 2), "m", config=DynamicUpdateConfig(backup_dir=tmp_path)
    )
    app = create_app(manager, Settings(api_key=STATIC))
    assert app.openapi_schema is None  # it is worked out for whoever asks
    document = app.openapi()
    routes = list(documentation.operations(app))
    assert len(routes) > 25
    for path, route in routes:
        assert scopes.declared(route) in scopes.SCOPES, path
        for method in route.methods or ():
            operation = document["paths"].get(path, {}).get(method.lower())
            if operation is not None:
                wanted = [] if is_open(path) else [{"ApiKey": [scopes.wanted(route)]}]
                assert operation["security"] == wanted
    inference = ("/invocations", "/v1/embeddings", "/v1/completions", "/v1/chat/completions")
    by_path = dict(routes)
    assert {scopes.wanted(by_path[path]) for path in inference} == {"read"}
    assert scopes.wanted(by_path["/v1/models/incremental_update"]) == "write"
    manager.close()


def test_a_scope_opens_what_it_is_for(running: Here, made: dict[str, str]) -> None:
    inputs = {"inputs": [[0.0, 0.0]]}
    for scope, key in made.items():
        with client(running, key) as http:
            assert http.get("/v1/models/status").status_code == 200
            assert http.post("/invocations", json=inputs).status_code == 200
            reply = http.post("/v1/models/incremental_update", json=UPDATE)
            if scope == "read":
                assert reply.status_code == 403
                error = reply.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert (error["type"], error["code"]) == ("permission_error", "insufficient_scope")
                assert "wants a key with scope write" in error["message"]
                challenge = reply.headers["www-authenticate"]
                assert challenge == 'Bearer error="insufficient_scope", scope="write"'
            else:
                assert reply.status_code == 200


def test_the_keys_name_is_the_actor_and_cannot_be_claimed(
    running: Here, made: dict[str, str]
) -> None:
    with client(running, made["write"]) as http:
        reply = http.post("/v1/models/incremental_update", json=UPDATE)
        event = http.get(f"/v1/models/updates/{reply.json()['data']['update_id']}").json()
        assert event["actor"] == "a write key"
        claimed = http.post(
            "/v1/models/incremental_update", json=UPDATE, headers={"x-actor": "a admin key"}
        )
        assert claimed.status_code == 400 and claimed.json()["error"]["param"] == "X-Actor"
        body = http.post("/v1/models/incremental_update", json={**UPDATE, "actor": "ana"})
        assert body.status_code == 400
    with client(running, STATIC) as http:
        event_id = http.post("/v1/models/create_version", json={"description": "x"}).json()
        event = http.get(f"/v1/models/updates/{event_id['data']['version_id']}").json()
        assert event["actor"] == "api-key"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer wl_",
        "Basic {key}",
        "{key}",
        "Bearer {key}x",
        "Bearer x{key}",
        "Bearer {key} {key}",
        "Bearer \u00e9",
        "Bearer " + "wl_" + "a" * 5000,
    ],
)
def test_no_key_and_what_is_none_is_401(
    running: Here, made: dict[str, str], header: str | None
) -> None:
    sent = {} if header is None else {"authorization": header.format(key=made["admin"]).encode()}
    reply = patient.get(f"{running.url}/v1/models/status", headers=sent)
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "unauthorized"
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert made["admin"] not in reply.text


def test_two_authorization_headers_are_none(running: Here, made: dict[str, str]) -> None:
    sent = [("authorization", f"Bearer {made['admin']}"), ("authorization", "Bearer other")]
    assert patient.get(f"{running.url}/v1/models/status", headers=sent).status_code == 401


def test_what_is_done_to_keys_is_seen_by_the_server_that_runs(running: Here) -> None:
    folder = running.folder
    first = keys(folder, "create", "bot", "--actor", "ana")
    assert (first["scope"], first["state"], first["created_by"]) == ("read", "active", "ana")

    def status(key: str) -> int:
        with client(running, key) as http:
            return http.get("/v1/models/status").status_code

    assert status(first["key"]) == 200  # at once
    second = keys(folder, "rotate", "bot", "--overlap", "1h")
    assert status(second["key"]) == status(first["key"]) == 200
    keys(folder, "rotate", "bot")
    until(lambda: status(second["key"]) == 401, "the second key still works")
    third = keys(folder, "rotate", "bot")["key"]
    assert status(third) == 200
    keys(folder, "revoke", "bot", "--actor", "bo")
    until(lambda: status(third) == 401, "the revoked key still works")
    shown = keys(folder, "show", "bot")
    assert (shown["state"], shown["revoked_by"]) == ("revoked", "bo")
    done = [(one["action"], one["actor"]) for one in shown["changes"]]
    assert done[0] == ("created", "ana") and done[-1] == ("revoked", "bo")
    assert "key" not in shown


def test_too_many_requests_are_told_when_to_come_back(running: Here) -> None:
    key = keys(running.folder, "create", "slow", "--per-minute", "2")["key"]
    with client(running, key) as http:
        replies = [http.get("/v1/models/status") for _ in range(6)]
    refused = [reply for reply in replies if reply.status_code == 429]
    assert len(refused) >= 3
    error = refused[0].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(refused[0].headers["retry-after"]) <= 30


def test_an_admin_key_manages_keys_over_http(running: Here, made: dict[str, str]) -> None:
    with client(running, made["admin"]) as http:
        asked = {"name": "web", "scope": "write", "expires_in_s": 60, "requests_per_minute": 100}
        created = http.post("/v1/keys", json=asked)
        assert created.headers["cache-control"] == "no-store"
        first = created.json()["key"]
        rotated = http.post("/v1/keys/rotate", json={"name": "web"}).json()
        assert rotated["expires_at"] is not None and rotated["requests_per_minute"] == 100
        with client(running, rotated["key"]) as web, client(running, first) as old:
            assert old.get("/v1/models/status").status_code == 401
            assert web.get("/v1/models/status").status_code == 200
            assert http.post("/v1/keys/revoke", json={"name": "web"}).json()["state"] == "revoked"
            assert web.get("/v1/models/status").status_code == 401
        (listed,) = [one for one in http.get("/v1/keys").json()["data"] if one["name"] == "web"]
        assert (listed["created_by"], listed["revoked_by"]) == ("a admin key", "a admin key")
        assert "key" not in listed and first not in http.get("/v1/keys").text
        changes = http.get("/v1/keys/changes", params={"name": "web"}).json()["data"]
        assert [one["action"] for one in changes] == ["created", "rotated", "revoked"]
        assert http.post("/v1/keys", json=asked).status_code == 400  # a name is used once
        for path in ("rotate", "revoke"):
            assert http.post(f"/v1/keys/{path}", json={"name": "nobody"}).status_code == 404
    for scope in ("read", "write"):
        with client(running, made[scope]) as http:
            assert http.get("/v1/keys").status_code == 403
            assert http.post("/v1/keys", json={"name": "x"}).status_code == 403
            assert http.post("/v1/keys/revoke", json={"name": "a admin key"}).status_code == 403


def test_the_first_key_that_is_made_over_http_can_make_others(tmp_path: Path) -> None:
    with here(tmp_path / "data") as server, server.client() as stranger:
        reply = stranger.post("/v1/keys", json={"name": "ops", "scope": "write"})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "scope"
        key = stranger.post("/v1/keys", json={"name": "ops", "scope": "admin"}).json()["key"]
        assert stranger.get("/v1/models/status").status_code == 401  # from the next request on
        with client(server, key) as http:
            assert http.post("/v1/keys", json={"name": "bot"}).status_code == 200


def test_a_server_that_asked_for_none_asks_from_the_first_key_on(tmp_path: Path) -> None:
    with here(tmp_path / "data") as server, server.client() as stranger:
        assert stranger.get("/v1/models/status").status_code == 200
        assert "security" not in stranger.get("/openapi.json").json()
        key = keys(server.folder, "create", "ops", "--scope", "admin")["key"]
        until(lambda: stranger.get("/v1/models/status").status_code == 401, "it asks for none")
        with client(server, key) as http:
            until(lambda: "security" in http.get("/openapi.json").json(), "the document is old")
    assert keys(server.folder, "list")[0]["used_at"] is not None


def test_a_key_made_before_the_first_start_lets_a_server_listen_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    key = keys(folder, "create", "ops", "--scope", "admin")["key"]
    assert folder.stat().st_mode & 0o777 == 0o700
    with serving(folder, "--host", "0.0.0.0") as server:
        assert patient.get(f"{server.url}/v1/models").status_code == 401
        with server.client(authorization=f"Bearer {key}") as http:
            assert http.get("/v1/models").status_code == 200
    keys(folder, "revoke", "ops")
    with pytest.raises(InvalidRequest, match="weightledger keys create"):
        serve(Settings(data_dir=folder, host="0.0.0.0"))


def test_a_key_that_ends_while_a_body_is_on_the_way_changes_nothing(running: Here) -> None:
    """The door looked at the key with the headers only: whoever held the body back wrote with a key
    that had been revoked, as long after as he liked."""
    body = json.dumps({"parameter_name": "bias", "update_data": 1.0}).encode()
    keys = running.manager.ledger.keys
    for route, kind in (
        ("incremental_update", "application/json"),
        ("batch_update", "application/octet-stream"),
        ("rollback", "application/json"),
    ):
        secret = keys.create(f"slow {route}", scope="write").secret
        with client(running, secret) as http:
            until(lambda http=http: http.get("/v1/models").status_code == 200)
        before = running.manager.log.history.head().seq
        url = urlsplit(running.url)
        with socket.create_connection((url.hostname, url.port), PATIENCE_S) as sender:
            head = (
                f"POST /v1/models/{route} HTTP/1.1\r\nHost: {url.netloc}\r\n"
                f"Authorization: Bearer {secret}\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            sender.sendall(head.encode() + body[:10])
            time.sleep(_AT_ONCE_S)
            keys.revoke(f"slow {route}")
            with client(running, secret) as http:
                until(lambda http=http: http.get("/v1/models").status_code == 401)
            sender.sendall(body[10:])
            reply = b"".join(iter(lambda sender=sender: sender.recv(65536), b"")).decode()
        assert reply.startswith("HTTP/1.1 401 "), reply
        assert f"the API key 'slow {route}' was revoked" in reply
        assert "www-authenticate: Bearer" in reply
        assert "x-request-id: " in reply
        assert running.manager.log.history.head().seq == before


def test_a_body_that_takes_long_is_taken_while_its_key_counts(running: Here) -> None:
    keys = running.manager.ledger.keys
    secret = keys.create("slow but sure", scope="write").secret
    with client(running, secret) as http:
        until(lambda: http.get("/v1/models").status_code == 200)

        def parts() -> Iterator[bytes]:
            yield b'{"parameter_name": "bias", '
            time.sleep(_AT_ONCE_S + 0.1)
            yield b'"update_data": 1.0}'

        reply = http.post(
            "/v1/models/incremental_update",
            content=parts(),
            headers={"content-type": "application/json"},
        )
    assert reply.status_code == 200, reply.text
