"""Tokens of an OpenID Connect issuer: a process of its own that serves its public keys."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests import patient
from tests.buckets import free_port
from tests.in_process import Here, here
from tests.waiting import until
from weightledger import InvalidRequest
from weightledger.api.rest.oidc import BadToken, Issuer
from weightledger.api.server.app import _issuer
from weightledger.api.server.settings import Settings
from weightledger.ledger.errors import EngineUnavailable

AUDIENCE = "weightledger-test"
UPDATE = {"parameter_name": "bias", "update_data": 0.001}
SIGNING, FOREIGN = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an issuer that is running."""
    folder, port = tmp_path_factory.mktemp("issuer"), free_port()
    url = f"http://127.0.0.1:{port}"
    algorithm = jwt.get_algorithm_by_name("ES256")
    public = json.loads(algorithm.to_jwk(SIGNING.public_key()))
    (folder / ".well-known").mkdir()
    about = {"issuer": url, "jwks_uri": f"{url}/keys.json"}
    (folder / ".well-known" / "openid-configuration").write_text(json.dumps(about))
    (folder / "keys.json").write_text(json.dumps({"keys": [{**public, "kid": "one"}]}))
    serving = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: answers(f"{url}/keys.json"), "the issuer does not answer", pid=serving.pid)
        yield url
    finally:
        serving.kill()
        serving.wait()


def answers(url: str) -> bool:
    try:
        return patient.get(url).status_code == 200
    except httpx2.HTTPError:
        return False


@pytest.fixture(scope="module")
def running(issuer: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    folder = tmp_path_factory.mktemp("oidc") / "data"
    settings = {"oidc_issuer": issuer, "oidc_audience": AUDIENCE, "auto_rollback_threshold": 0.0}
    with here(folder, **settings) as server:
        yield server


def token(issuer: str, *, key: Any = SIGNING, kid: str | None = "one", **claims: Any) -> str:
    said = {
        "iss": issuer,
        "aud": AUDIENCE,
        "sub": "ana",
        "exp": time.time() + 600,
        "scope": "openid weightledger:write",
        **claims,
    }
    kept = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(kept, key, "ES256", headers={} if kid is None else {"kid": kid})


def test_a_token_lets_in_as_far_as_its_scope(running: Here, issuer: str) -> None:
    with running.client(authorization=f"Bearer {token(issuer)}") as http:
        done = http.post("/v1/models/incremental_update", json=UPDATE)
        assert done.status_code == 200, done.text
        event = http.get(f"/v1/models/updates/{done.json()['data']['update_id']}").json()
        assert event["actor"] == "oidc:ana"
    reading = token(issuer, scope=None, roles=["weightledger:read", "other"])
    with running.client(authorization=f"Bearer {reading}") as http:
        assert http.get("/v1/models/status").status_code == 200
        assert http.post("/v1/models/incremental_update", json=UPDATE).status_code == 403


def test_the_ledgers_own_keys_go_on_beside_it(running: Here) -> None:
    secret = running.manager.ledger.keys.create("robot", "write").secret
    with running.client(authorization=f"Bearer {secret}") as http:
        assert http.get("/v1/models/status").status_code == 200
    with running.client() as stranger:
        assert stranger.get("/v1/models/status").status_code == 401


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": time.time() - 3600},
        {"exp": None},
        {"nbf": time.time() + 3600},
        {"iss": "https://other.example"},
        {"aud": "another"},
        {"aud": None},
        {"sub": None},
        {"sub": ""},
        {"sub": "ana\nbo"},
        {"sub": "a" * 256},
        {"scope": "openid"},
        {"scope": "weightledger:root"},
        {"scope": 7},
        {"scope": {"weightledger:write": True}},
        {"key": FOREIGN},
        {"kid": "two"},
        {"kid": None},
    ],
    ids=lambda changed: " ".join(changed),
)
def test_any_other_token_lets_nobody_in(running: Here, issuer: str, changed: Any) -> None:
    with running.client(authorization=f"Bearer {token(issuer, **changed)}") as http:
        reply = http.get("/v1/models/status")
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "unauthorized"
    assert reply.headers["www-authenticate"] == 'Bearer error="invalid_token"'


def test_a_token_that_anyone_can_make_lets_nobody_in(running: Here, issuer: str) -> None:
    claims = jwt.decode(token(issuer), options={"verify_signature": False})
    forged = [
        jwt.encode(claims, "", "none", headers={"kid": "one"}),
        jwt.encode(claims, "x" * 64, "HS256", headers={"kid": "one"}),
        token(issuer)[:-4] + "AAAA",
        "a.b.c",
        "..",
    ]
    for one in forged:
        with running.client(authorization=f"Bearer {one}") as http:
            assert http.get("/v1/models/status").status_code == 401


def test_an_issuer_that_does_not_answer_is_503(tmp_path: Path) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    settings = {"oidc_issuer": gone, "oidc_audience": AUDIENCE}
    with (
        here(tmp_path / "data", **settings) as server,
        server.client(authorization=f"Bearer {token(gone)}") as http,
    ):
        reply = http.get("/v1/models/status")
        again = http.get("/v1/models/status")  # within the time in which it is not asked again
    for one in (reply, again):
        assert (one.status_code, one.headers["retry-after"]) == (503, "1")


def test_keys_that_cannot_be_read_anew_are_taken_no_longer(
    issuer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is anybody told that a token is bad which may be good."""
    there = Issuer(issuer, AUDIENCE)
    assert there.admit(token(issuer))[0] == "oidc:ana"
    monkeypatch.setattr(there, "_read", unreadable)
    with pytest.raises(BadToken):
        there.admit(token(issuer, kid="two"))  # as far as was known a moment ago
    there._tried_at -= 11  # s
    for _ in range(2):
        with pytest.raises(EngineUnavailable):
            there.admit(token(issuer, kid="two"))
        assert there.admit(token(issuer))[0] == "oidc:ana"
    there._tried_at -= 11
    there._read_at -= 301
    for _ in range(2):
        with pytest.raises(EngineUnavailable):
            there.admit(token(issuer))


def unreadable() -> Any:
    raise EngineUnavailable("no answer")


def test_an_issuers_name_may_end_with_a_slash(issuer: str) -> None:
    for url in (issuer, f"{issuer}/"):
        assert Issuer(url, AUDIENCE).admit(token(f"{issuer}/"))[0] == "oidc:ana"


def test_an_issuer_needs_https_and_an_audience() -> None:
    with pytest.raises(InvalidRequest, match="https"):
        Issuer("http://issuer.example", AUDIENCE)
    with pytest.raises(InvalidRequest, match="--oidc-audience"):
        _issuer(Settings(oidc_issuer="https://issuer.example"))
