"""The OpenAPI document: complete, true of every reply, and enough to generate a client from."""

import hashlib
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import patient
from tests.in_process import listening
from tests.serving import Server, serving
from tests.text_models import save_llama
from tests.waiting import PATIENCE_S
from weightledger import DynamicModelManager, DynamicUpdateConfig
from weightledger.ledger.engines.transformers import TransformersEngine

KEY = "wl_documented"
AUTH = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("keyed") / "data", "--api-key", KEY) as running:
        yield running


@pytest.fixture(scope="module")
def document(keyed: Server) -> dict[str, Any]:
    read: dict[str, Any] = patient.get(f"{keyed.url}/openapi.json", headers=AUTH).json()
    return read


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def test_every_reference_leads_somewhere(document) -> None:
    for reference in references(document):
        at: Any = document
        assert reference.startswith("#/")
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]


def test_every_operation_is_described(document) -> None:
    listed = list(operations(document))
    assert len({operation["operationId"] for _, _, operation in listed}) == len(listed)
    assert len({operation["summary"] for _, _, operation in listed}) == len(listed)
    for method, path, operation in listed:
        where = f"{method} {path}"
        assert operation["description"], where
        replies = operation["responses"]
        error = replies["default"]["content"]["application/json"]["schema"]
        assert error == {"$ref": "#/components/schemas/ErrorReply"}, where
        assert replies["200"]["content"], where
        for status, reply in replies.items():
            assert reply["description"], where
            if int(status if status.isdigit() else 0) in range(400, 503):
                assert reply["content"] == replies["default"]["content"], where
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        assert body is None or body["examples"], where
        if path.endswith(("_update", "/rollback")):
            headers = {one["name"] for one in operation["parameters"] if one["in"] == "header"}
            assert headers == {"Idempotency-Key", "If-Match"}, where


def test_the_key_is_a_security_scheme_of_all_routes_but_the_probes(document) -> None:
    assert document["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
    assert document["security"] == [{"ApiKey": []}]
    wanted = {path: operation["security"] for _, path, operation in operations(document)}
    open_to_all = {path for path, keys in wanted.items() if not keys}
    assert open_to_all == {"/livez", "/readyz", "/health"}
    assert wanted["/v1/models/rollback"] == [{"ApiKey": ["write"]}]
    assert wanted["/v1/models/verify"] == [{"ApiKey": ["read"]}]


def test_without_a_key_none_is_asked_for(http) -> None:
    assert "security" not in http.get("/openapi.json").json()


def test_the_examples_work(keyed, document) -> None:
    rollout = ""
    with keyed.client(**AUTH) as http:
        for method, path, operation in operations(document):
            media = operation.get("requestBody", {}).get("content", {}).get("application/json")
            for example in media["examples"].values() if media else ():
                # A hold and a rollout that examples before have made.
                url = path.format(hold_id="hold_0", rollout_id=rollout)
                reply = http.request(method, url, json=example["value"])
                if path == "/v1/fleet/rollouts":
                    rollout = reply.json()["data"]["id"]
                adapter = "adapter" in path  # no such folder here, and digits takes none
                assert reply.status_code == 200 or adapter, (path, reply.text)
        names = {p["name"] for p in document["paths"]["/v1/models/updates"]["get"]["parameters"]}
        assert {"kind", "actor", "outcome", "since", "limit", "after"} <= names


def test_a_body_is_refused_where_none_is_taken(keyed, document) -> None:
    """Why somebody approves, sent in one, would be lost."""
    taking_none = [
        path
        for method, path, operation in operations(document)
        if method == "POST" and "requestBody" not in operation
    ]
    assert "/v1/models/approvals/{approval_id}/approve" in taking_none
    with keyed.client(**AUTH) as http:
        before = http.get("/v1/models/updates").json()["first_id"]
        for path in taking_none:
            url = path.replace("{version_id}", "v0").replace("{", "").replace("}", "")
            for sent in (b'{"reason":"seen"}', b"[]", b"x"):
                reply = http.post(url, content=sent, headers={"content-type": "application/json"})
                assert reply.status_code == 400, (path, sent, reply.text)
                assert "takes no body" in reply.json()["error"]["message"]
        assert http.get("/v1/models/updates").json()["first_id"] == before
        assert http.post("/v1/models/verify", json={}).status_code == 200


def try_everything(url: str, folder: Path, *options: str) -> None:
    """schemathesis with all its checks: made-up requests, and sequences of them."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(Path(__file__).with_name("schemathesis.toml"))),
            *("run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {KEY}"),
            *("--checks", "all", "--max-examples", "5", "--seed", "1", "--no-color"),
            *("--request-timeout", str(PATIENCE_S), "--max-response-time", str(PATIENCE_S)),
            *("--generation-database", "none", *options),
        ],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_no_request_gets_a_reply_that_the_document_does_not_have(keyed, tmp_path) -> None:
    try_everything(keyed.url, tmp_path)


@pytest.mark.soak
def test_nor_does_any_in_twenty_minutes(keyed, tmp_path) -> None:
    try_everything(keyed.url, tmp_path, "--max-examples", "100", "--max-time", "1200")


def test_nor_does_any_that_asks_a_text_model(tmp_path) -> None:
    # A short context ends long replies; it changes no status of any.
    engine = TransformersEngine.load(save_llama(tmp_path / "llama", max_position_embeddings=32))
    config = DynamicUpdateConfig(backup_dir=tmp_path / "data")
    manager = DynamicModelManager(engine, "llama", config=config)
    try:
        with listening(manager, api_key=KEY) as url:
            try_everything(url, tmp_path, "--include-path-regex", "completions")
    finally:
        manager.close()


def test_a_generated_client_is_typed_and_works(keyed, document, tmp_path, monkeypatch) -> None:
    generator = pytest.importorskip("openapi_python_client", reason="make test installs it")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "config.yaml").write_text("post_hooks: []\n")  # formatting asks for ruff in PATH
    ran = subprocess.run(
        [
            *(sys.executable, "-m", generator.__name__, "generate", "--path", "openapi.json"),
            *("--output-path", "client", "--meta", "none", "--fail-on-warning"),
            *("--config", "config.yaml"),
        ],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    monkeypatch.syspath_prepend(str(tmp_path))
    client_class = importlib.import_module("client").AuthenticatedClient
    updates = importlib.import_module("client.api.dynamic_updates")
    for name in ("incremental_update", "rollback", "get_status"):
        importlib.import_module(f"client.api.dynamic_updates.{name}")
    models = importlib.import_module("client.models")
    body = models.IncrementalUpdateBody(parameter_name="2.bias", update_data=0.001)
    with client_class(base_url=keyed.url, token=KEY) as client:
        before = updates.get_status.sync(client=client)
        done = updates.incremental_update.sync(client=client, body=body, idempotency_key="typed")
        again = updates.incremental_update.sync(client=client, body=body, idempotency_key="typed")
        back = updates.rollback.sync(client=client, body=models.RollbackBody("head~1"))
        wrong = updates.rollback.sync(client=client, body=models.RollbackBody("v999999"))
    assert isinstance(before, models.Status)
    assert isinstance(done, models.UpdateReply)
    assert done.data.update_count == before.total_updates + 1
    assert again == done
    assert isinstance(back, models.RollbackReply)
    assert isinstance(wrong, models.ErrorReply)
    assert wrong.error.code == "not_found"


def test_the_page_asks_no_other_server(keyed) -> None:
    with keyed.client() as stranger:
        page = stranger.get("/docs")
        assert page.status_code == 200
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert "http" not in page.text
        for name in ("docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "docs/docs.js"):
            assert f'"{name}"' in page.text
            file = stranger.get(f"/{name}")
            plain = stranger.get(f"/{name}", headers={"accept-encoding": "identity"})
            assert file.content == plain.content
        assert stranger.get("/docs/README.md").status_code == 404
        assert stranger.get("/docs/..%2Fpages.py").status_code == 404
        assert stranger.get("/openapi.json").status_code == 401


def test_the_bundle_is_the_one_that_is_named(keyed) -> None:
    folder = Path(__file__).parents[2] / "api" / "rest" / "swagger"
    told = (folder / "README.md").read_text()
    assert "Apache License" in (folder / "LICENSE").read_text()
    for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
        content = patient.get(f"{keyed.url}/docs/{name}").content
        assert hashlib.sha256(content).hexdigest() in told
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_500_000
