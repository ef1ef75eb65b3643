"""Who may come in: API keys, loopback without one, and what a browser could be made to send."""

import os
import subprocess
import sys

import openai
import pytest

from tests.serving import serving


def test_the_openai_client_lists_the_model(server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
        (model,) = client.models.list().data
        assert (model.id, model.object, model.owned_by) == ("digits", "model", "weightledger")
        assert client.models.retrieve("digits") == model
        with pytest.raises(openai.NotFoundError, match="'gpt' not found"):
            client.models.retrieve("gpt")


def test_with_a_key_every_route_but_the_probes_asks_for_it(tmp_path) -> None:
    with serving(tmp_path / "data", "--api-key", "wl_secret") as running:
        with running.client() as stranger:
            for method, path in (
                ("GET", "/v1/models"),
                ("GET", "/v1/models/status"),
                ("POST", "/v1/models/incremental_update"),
                ("POST", "/v1/models/verify"),
                ("POST", "/invocations"),
                ("GET", "/metrics"),
                ("GET", "/docs"),
                ("GET", "/openapi.json"),
                ("GET", "/nowhere"),
            ):
                reply = stranger.request(method, path)
                assert (path, reply.status_code) == (path, 401)
                assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
            for path in ("/livez", "/readyz", "/health"):
                assert stranger.get(path).status_code == 200
        for wrong in ("Bearer nope", "wl_secret", "Basic wl_secret", "Bearer"):
            with running.client(authorization=wrong) as client:
                assert client.get("/v1/models").status_code == 401
        with running.client(authorization="Bearer wl_secret") as client:
            sent = {"parameter_name": "2.bias", "update_data": 0.001}
            reply = client.post("/v1/models/incremental_update", json=sent)
            item = client.get(f"/v1/models/updates/{reply.json()['data']['update_id']}").json()
            assert item["actor"] == "api-key"
            listed = client.get("/v1/models/updates", params={"actor": "api-key"}).json()["data"]
            assert [i["id"] for i in listed] == [item["id"]]
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="wl_secret") as key:
            assert [model.id for model in key.models.list()] == ["digits"]


def test_without_a_key_only_loopback_is_served(tmp_path) -> None:
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "weightledger",
            "serve",
            "--host",
            "0.0.0.0",
            "--data-dir",
            str(tmp_path / "data"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "WEIGHTLEDGER_PORT": "0"},
    )
    assert ran.returncode == 1
    assert "is not loopback: set --api-key" in ran.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({"host": "evil.example"}, 403, "Host"),
        ({"host": "127.0.0.1.evil.example:2242"}, 403, "Host"),
        ({"origin": "https://evil.example"}, 403, "Origin"),
        ({"origin": "null"}, 403, "Origin"),
        ({"content-type": "text/plain"}, 400, "Content-Type application/json"),
        ({"content-type": "application/x-www-form-urlencoded"}, 400, "Content-Type"),
    ],
)
def test_a_page_in_the_users_browser_cannot_write(http, headers, status, message) -> None:
    sent = b'{"parameter_name":"2.bias","update_data":1}'
    given = {"content-type": "application/json", **headers}
    reply = http.post("/v1/models/incremental_update", content=sent, headers=given)
    assert reply.status_code == status
    assert message in reply.json()["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "localhost:2242", "127.0.0.1", "[::1]:2242"])
def test_loopback_names_are_welcome(http, host) -> None:
    assert http.get("/livez", headers={"host": host}).status_code == 200
