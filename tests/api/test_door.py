"""Who may come in: API keys, loopback without one, and what a browser could be made to send."""

import gzip

import openai
import pytest

from tests import warm
from tests.serving import serving
from weightledger.api.rest import origins
from weightledger.api.server.settings import Settings


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
    ran = warm.run(
        *("serve", "--host", "0.0.0.0", "--data-dir", str(tmp_path / "data")),
        env={"WEIGHTLEDGER_PORT": "0"},
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


@pytest.mark.parametrize(
    "host",
    [
        *("LOCALHOST", "localhost.", "localhost:", "127.0.0.2:80", "[::1]", "[0:0:0:0:0:0:0:1]:1"),
        "[0000::1]:65535",
    ],
)
def test_loopback_in_other_words_is_welcome_too(host) -> None:
    assert origins.refusal([host], []) is None
    assert origins.refusal(["localhost"], [f"HTTP://{host}"]) is None


@pytest.mark.parametrize(
    "host",
    [
        *("", " ", "evil.example", "localhost.evil.com", "127.0.0.1.evil.com", "127.0.0.1.."),
        *("[::1].evil.com", "[::1]evil.com:80", "[::1", "::1]", "::1", "[::1]:x", "[::1]:80:80"),
        *("[::1%25eth0]", "[::1%eth0]", "[fe80::1%25lo]", "[::ffff:8.8.8.8]", "[127.0.0.1]"),
        *("evil.com@localhost", "localhost@evil.com", "user:pw@127.0.0.1", "localhost:80@evil.com"),
        *("localhost:x", "localhost:123456", "localhost:-1", "localhost/x", "localhost?x"),
        *(
            "localhost#.evil.com",
            "localhost\\.evil.com",
            "localhost evil.com",
            "localhost,evil.com",
        ),
        *("0.0.0.0", "[::]", "0177.0.0.1", "127.1", "2130706433", "ⓛocalhost", "localhost\t"),
    ],
)
def test_every_other_host_is_a_stranger(host) -> None:
    assert "not loopback" in str(origins.refusal([host], []))
    assert "may not use" in str(origins.refusal(["localhost"], [f"http://{host}"]))


@pytest.mark.parametrize("origin", ["null", "NULL", "", "localhost", "file://", "ftp://localhost"])
def test_an_origin_is_a_web_address(origin) -> None:
    assert "may not use" in str(origins.refusal(["localhost"], [origin]))


def test_headers_that_come_twice_are_refused() -> None:
    assert origins.refusal([], []) is not None
    assert origins.refusal(["localhost", "localhost"], []) is not None
    assert origins.refusal(["localhost"], ["http://localhost", "http://localhost"]) is not None


@pytest.mark.parametrize("key", ["schlüssel", "wl secret", "wl\nkey", "wl_\x7f", "ключ"])
def test_a_key_that_no_header_can_carry_is_no_key(key) -> None:
    with pytest.raises(ValueError, match="visible ASCII characters"):
        Settings(api_key=key)


def test_such_a_key_is_refused_at_start(tmp_path) -> None:
    ran = warm.run("serve", "--api-key", "schlüssel", cwd=tmp_path)
    assert ran.returncode == 2
    assert "--api-key" in ran.stderr and "visible ASCII characters" in ran.stderr
    assert "schlüssel" not in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/v1/models", "/v1/models/status", "/metrics"]
)
def test_head_answers_as_get_without_a_body(http, path) -> None:
    reply, beside = http.head(path), http.get(path)
    assert (reply.status_code, reply.content) == (200, b"")
    assert reply.headers["content-type"] == beside.headers["content-type"]
    assert "content-length" in reply.headers


@pytest.mark.parametrize("path", ["/nowhere", "/v1/models/none", "/v1/models/updates/x"])
def test_head_of_nothing_is_404(http, path) -> None:
    assert http.head(path).status_code == 404


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate", "gzip, identity", "x"])
@pytest.mark.parametrize("path", ["/v1/models/incremental_update", "/v1/models/batch_update"])
def test_an_encoded_body_is_refused_by_name(http, path, encoding) -> None:
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    reply = http.post(path, content=gzip.compress(b"{}"), headers=headers)
    assert reply.status_code == 415
    assert encoding.lower() in reply.json()["error"]["message"]
    assert reply.json()["error"]["param"] == "Content-Encoding"
    assert reply.headers["accept-encoding"] == "identity"


def test_a_post_without_a_body_needs_no_content_type(http) -> None:
    assert http.post("/v1/models/verify").status_code == 200
    version = http.get("/v1/models/status").json()["current_version"]
    for verb in ("pin", "unpin"):
        assert http.post(f"/v1/models/versions/{version}/{verb}").status_code == 200
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert http.post("/v1/models/verify", content=b"", headers=form).status_code == 200
    foreign = http.post("/v1/models/verify", headers={"origin": "https://evil.example"})
    assert foreign.status_code == 403


def test_a_post_that_needs_a_body_says_so(http) -> None:
    reply = http.post("/v1/models/rollback")
    assert reply.status_code == 400
    assert "the body is empty" in reply.json()["error"]["message"]
