"""Spans of a real server, as a collector of another process decodes them."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import text_models
from tests.in_process import listening
from tests.monitoring.models import manager
from tests.serving import Server
from tests.test_architecture import modules, name_of
from tests.waiting import until
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.http import client

TRACE = "0af7651916cd43dd8448eb211c80319c"

Span = dict[str, Any]


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Span]]:
    """Of a server that was asked for text, updated and asked whether it lives, then stopped."""
    folder = tmp_path_factory.mktemp("traced")
    file, model = folder / "spans.jsonl", text_models.save_llama(folder / "llama")
    receiver = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("otlp_receiver.py")), str(file)],
        stdout=subprocess.PIPE,
    )
    assert receiver.stdout is not None
    endpoint = f"http://127.0.0.1:{int(receiver.stdout.readline())}"
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": "ours"}
    server = Server(folder / "data", "--model", str(model), env=env)
    try:
        server.start()
        with server.client(traceparent=f"00-{TRACE}-b7ad6b7169203331-01") as http:
            asked = {"prompt": "one two", "max_tokens": 3}
            assert http.post("/v1/completions", json=asked).status_code == 200
            (name, *_) = [one["name"] for one in http.get("/v1/models/parameters").json()["data"]]
            update = {"parameter_name": name, "update_data": 0.5}
            assert http.post("/v1/models/incremental_update", json=update).json()["success"]
            assert http.post("/v1/models/incremental_update", json={}).status_code == 400
            assert http.get("/livez").status_code == 200
        server.stop()  # what it has not sent yet, it sends now
        yield [json.loads(line) for line in file.read_text().splitlines()]
    finally:
        server.stop()
        receiver.kill()
        receiver.wait()
        receiver.stdout.close()


def named(spans: list[Span], name: str) -> list[Span]:
    return [one for one in spans if one["name"] == name]


def test_a_write_is_a_request_that_proposes_appends_and_publishes(spans: list[Span]) -> None:
    request, refused = named(spans, "POST /v1/models/incremental_update")
    (event,) = named(spans, "weightledger.updated")
    assert request["trace"] == event["trace"] == TRACE and event["parent"] == request["id"]
    assert event["attributes"]["weightledger.event"].startswith("update_1_")
    assert request["start"] <= event["start"] and event["end"] <= request["end"]
    parts = [named(spans, f"weightledger.{name}") for name in ("propose", "append", "publish")]
    inside = [next(one for one in part if one["parent"] == event["id"]) for part in parts]
    edges = [event["start"], *(one["end"] for one in inside)]
    assert edges == sorted(edges) and edges[-1] == event["end"]
    assert [one["start"] for one in inside] == edges[:-1]
    assert refused["attributes"]["http.response.status_code"] == 400
    assert not [one for one in spans if one["parent"] == refused["id"]]


def test_inference_has_the_attributes_of_the_conventions(spans: list[Span]) -> None:
    (request,) = named(spans, "POST /v1/completions")
    (one,) = [span for span in spans if "gen_ai.operation.name" in span["attributes"]]
    facts = one["attributes"]
    assert one["name"] == f"text_completion {facts['gen_ai.request.model']}"
    assert one["parent"] == request["id"] and request["trace"] == TRACE
    assert facts["gen_ai.response.model"] == facts["gen_ai.request.model"]
    assert facts["gen_ai.usage.input_tokens"] >= 2
    assert 1 <= facts["gen_ai.usage.output_tokens"] <= 3
    assert facts["weightledger.seq"] == 0 and len(facts["weightledger.digest"]) == 64
    assert request["attributes"]["weightledger.request_id"]


def test_who_sends_them_is_said_and_probes_are_no_requests(spans: list[Span]) -> None:
    assert {one["resource"]["service.name"] for one in spans} == {"ours"}
    assert not [one for one in spans if "livez" in one["name"] or "readyz" in one["name"]]
    # Before anybody asked: the log's first events belong to no request.
    assert all(one["trace"] != TRACE for one in named(spans, "weightledger.version_created"))


def test_what_is_no_url_is_refused(tmp_path: Path) -> None:
    one = manager(tmp_path)
    try:
        with (
            pytest.raises(InvalidRequest, match="is no server's URL"),
            listening(one, otlp_endpoint="nowhere"),
        ):
            pass
    finally:
        one.close()


def test_nothing_is_imported_that_is_not_configured() -> None:
    """Neither an SDK nor a detector, nor what imports them, at the head of any other file."""
    optional = ("opentelemetry", "river", "weightledger.api.server.tracing")
    for path in modules("ledger", "rules", "api"):
        if name_of(path) == "api.server.tracing":
            continue
        head = [one for one in ast.parse(path.read_text()).body if isinstance(one, ast.ImportFrom)]
        assert not [one.module for one in head if (one.module or "").startswith(optional)], path


def test_without_the_extra_a_server_says_so_and_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "weightledger.api.server.tracing", None)
    one = manager(tmp_path)
    try:
        with listening(one, otlp_endpoint="http://127.0.0.1:1") as url:
            assert url
        until(lambda: "weightledger[otel]" in caplog.text)
    finally:
        one.close()


def test_the_framework_looks_for_no_telemetry_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked() -> None:
        raise AssertionError("it was looked for")

    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", asked)
    one = manager(tmp_path)
    try:
        with listening(one) as url, client(url) as http:
            assert http.get("/livez").status_code == 200
    finally:
        one.close()
