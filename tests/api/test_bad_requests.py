"""Bad input: the stated error, in the one form, and nothing changed.

What each message says; `test_generated_requests` makes the rest from the document.
"""

import codecs
import json
import re

import numpy as np
import pytest
from safetensors.numpy import save

UPDATE = "/v1/models/incremental_update"


def head(http) -> tuple:
    ready = http.get("/readyz").json()
    newest = http.get("/v1/models/updates", params={"limit": 1}).json()["data"][0]
    return ready["seq"], ready["digest"], newest["seq"]


def check(http, reply, status: int, message: str, param: str | None = None) -> None:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    if param is not None:
        assert error["param"] == param


def update(**fields) -> dict:
    return {"parameter_name": "2.bias", "update_data": [0.0] * 10, **fields}


@pytest.mark.parametrize(
    ("sent", "status", "message", "param"),
    [
        (update(parameter_name="nope"), 404, "Parameter 'nope' not found", "parameter_name"),
        (update(update_data=[1, 2, 3]), 400, "has shape (10,), got 3 values", "update_data"),
        (update(update_data=[[1]]), 400, "has shape (10,), got shape (1, 1)", "update_data"),
        (update(update_data=1e39), 400, "overflows float32", "update_data"),
        (update(update_data=True), 400, "must be numbers, got values of type bool", "update_data"),
        (update(update_data="1"), 400, "must be numbers, got values of type str", "update_data"),
        (update(update_data=[1, [2]]), 400, "ragged", "update_data"),
        (update(update_data=None), 400, "must be numbers", "update_data"),
        (update(learning_rate=1.5), 400, "less than or equal to 1", "learning_rate"),
        (update(learning_rate=-0.1), 400, "greater than or equal to 0", "learning_rate"),
        (update(learning_rate=False), 400, "valid number", "learning_rate"),
        (update(learning_rate="0.1"), 400, "valid number", "learning_rate"),
        (update(update_type="add"), 400, "additive, multiplicative, replace", "update_type"),
        (update(metadata=[]), 400, "metadata", "metadata"),
        (update(learning_rte=0.1), 400, "Extra inputs", "learning_rte"),
        ({"parameter_name": "2.bias"}, 400, "Field required", "update_data"),
        ([], 400, "should be an object", None),
    ],
)
def test_updates(http, sent, status, message, param) -> None:
    before = head(http)
    check(http, http.post(UPDATE, json=sent), status, message, param)
    assert head(http) == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty"),
        ('{"parameter_name":"2.bias"}'.encode("utf-16"), "has to be in UTF-8"),
        (b"{", "the body is not the JSON expected"),
        (b"\xff\xfe", "the body is not the JSON expected"),
        (b"[" * 100_000, "the body is not the JSON expected"),
        (b'{"parameter_name":"2.bias","update_data":NaN}', "must be finite"),
        (b'{"parameter_name":"2.bias","update_data":[Infinity,0,0,0,0,0,0,0,0,0]}', "finite"),
        (b'{"parameter_name":"2.bias","update_data":1' + b"0" * 400 + b"}", "overflows"),
        (b'{"parameter_name":"2.bias","update_data":1,"learning_rate":NaN}', "learning_rate"),
        (b'{"parameter_name":"2.bias","update_data":1,"metadata":{"x":NaN}}', "canonical JSON"),
        (
            b'{"parameter_name":"2.bias","update_data":1,"metadata":{"x":[9007199254740993]}}',
            "9007199254740993 exceeds safe integer domain",
        ),
        (
            b'{"parameter_name":"2.bias","update_data":1,"metadata":{"x":-9007199254740993}}',
            "send it as a string",
        ),
        (
            b'{"parameter_name":"2.bias","update_data":' + b"[" * 3000 + b"]" * 3000 + b"}",
            "recursion",
        ),
    ],
)
def test_bodies(http, body, message) -> None:
    before = head(http)
    reply = http.post(UPDATE, content=body, headers={"content-type": "application/json"})
    check(http, reply, 400, message)
    assert head(http) == before


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"parameter_name":"2.bias","update_data":0,"update_data":0}', "update_data"),
        (b'{"parameter_name":"2.bias","update_data":0,"update_d\\u0061ta":0}', "update_data"),
        (b'{"parameter_name":"2.bias","update_data":0,"metadata":{"a":1,"a":1}}', "a"),
        (b'{"parameter_name":"2.bias","update_data":0,"metadata":{"x":[1,{"":1,"":2}]}}', ""),
        (b'{"parameter_name":"2.bias","factors":{"a":[[1]],"b":[[1]],"a":[[2]]}}', "a"),
        (b'{"no_field":1,"parameter_name":"2.bias","no_field":NaN}', "no_field"),
    ],
)
def test_a_name_that_stands_twice_is_refused_by_name(http, body, name) -> None:
    """Which of the two is meant is not known."""
    before = head(http)
    reply = http.post(UPDATE, content=body, headers={"content-type": "application/json"})
    check(http, reply, 400, f"ambiguous: {name!r} stands more than once", name)
    assert head(http) == before


def test_no_route_takes_a_name_twice(http) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    routes = [
        path
        for path, methods in paths.items()
        if "application/json" in methods.get("post", {}).get("requestBody", {}).get("content", {})
    ]
    assert len(routes) > 6
    before = head(http)
    for path in routes:
        reply = http.post(
            path, content=b'{"x":1,"x":2}', headers={"content-type": "application/json"}
        )
        check(http, reply, 400, "'x' stands more than once", "x")
    assert head(http) == before


@pytest.mark.parametrize(
    "header",
    [
        '{"2.bias":%s,"2.bias":%s}',
        '{"__metadata__":{"2.bias":"","2.bias":""},"2.bias":%s}',
    ],
)
def test_a_tensor_that_a_file_has_twice_is_refused_by_name(http, header) -> None:
    before = head(http)
    entry = '{"dtype":"F32","shape":[10],"data_offsets":[0,40]}'
    text = header.replace("%s", entry).encode()
    body = len(text).to_bytes(8, "little") + text + bytes(40)
    headers = {"content-type": "application/octet-stream"}
    reply = http.post("/v1/models/batch_update", content=body, headers=headers)
    check(http, reply, 400, "'2.bias' stands more than once", "2.bias")
    assert head(http) == before


def test_a_body_that_is_too_large_names_the_way_out(http) -> None:
    before = head(http)
    body = json.dumps(update(update_data=[0.125] * 1_000_000)).encode()
    assert len(body) > 4 * 1024 * 1024
    reply = http.post(UPDATE, content=body, headers={"content-type": "application/json"})
    check(
        http,
        reply,
        413,
        "larger than this route takes; send large updates to /v1/models/batch_update",
    )
    assert head(http) == before


def test_a_byte_order_mark_before_json_is_skipped(http) -> None:
    body = codecs.BOM_UTF8 + json.dumps(update()).encode()
    reply = http.post(UPDATE, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 200


@pytest.mark.parametrize(
    "metadata",
    ["[" * 3000, '{"a":' * 3000, "[1]", "x", "", "null", '{"a":NaN}', '{"a":{"b":1,"b":1}}'],
)
def test_metadata_in_a_query_is_a_json_object(http, metadata) -> None:
    before = head(http)
    headers = {"content-type": "application/octet-stream"}
    body = save({"2.bias": np.zeros(10, "f4")})
    reply = http.post(
        "/v1/models/batch_update", params={"metadata": metadata}, content=body, headers=headers
    )
    check(http, reply, 400, "", "metadata")
    assert head(http) == before


@pytest.mark.parametrize("description", ["", "x" * 501, None, 7])
def test_descriptions(http, description) -> None:
    before = head(http)
    reply = http.post("/v1/models/create_version", json={"description": description})
    check(http, reply, 400, "description", "description")
    assert head(http) == before


def test_the_longest_description_is_taken(http) -> None:
    reply = http.post("/v1/models/create_version", json={"description": "é" * 500})
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ("nonsense", "Version nonsense not found"),
        ("v12_1700000000", "Version v12_1700000000 not found"),
        ("update_1_1", "Version update_1_1 not found"),
        ("seq:99999", "Version seq:99999 not found"),
        ("head~99999", "Version head~99999 not found"),
        ("1999-01-01T00:00:00Z", "Version 1999-01-01T00:00:00Z not found"),
        ("../../etc/passwd", "not found"),
    ],
)
def test_rollback_to_nowhere(http, position, message) -> None:
    before = head(http)
    reply = http.post("/v1/models/rollback", json={"version_id": position})
    check(http, reply, 404, message)
    assert head(http) == before


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"inputs": [[0.0] * 63]}, "the model refused inputs of shape (1, 63)"),
        ({"inputs": [[0.0], [0.0, 1.0]]}, "nested lists of equal length"),
        ({"inputs": "x"}, "must be numbers"),
        ({"inputs": [[0] * 64], "dtype": "float7"}, "dtype must be one of"),
        ({}, "Field required"),
    ],
)
def test_invocations(http, sent, message) -> None:
    check(http, http.post("/invocations", json=sent), 400, message)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"limit": "0"}, "limit: Input should be greater than or equal to 1, got '0'"),
        ({"limit": "101"}, "limit: Input should be less than or equal to 100"),
        ({"limit": "x"}, "limit: Input should be a valid integer"),
        ({"kind": "deleted"}, "kind: must be one of"),
        ({"outcome": "maybe"}, "outcome: Input should be 'applied' or 'rejected'"),
        ({"since": "yesterday"}, "since: must be an ISO 8601 time"),
        ({"min_seq": "-1"}, "min_seq: Input should be greater than or equal to 0"),
        ({"parametre": "x"}, "unknown query parameter 'parametre'; expected some of actor, after,"),
        ({"limit": ["1", "2"]}, "limit: expected once, got 2 times"),
    ],
)
def test_audit_queries(http, query, message) -> None:
    check(http, http.get("/v1/models/updates", params=query), 400, message)


NAMES = {"{model}": "digits", "{event_id}": "event_0", "{version_id}": "v0"}


def test_no_route_ignores_a_query_parameter(http) -> None:
    """`?dry_run=true` at a route without a dry run is refused, never the real thing."""
    before = head(http)
    routes = http.get("/openapi.json").json()["paths"]
    for path, methods in routes.items():
        for method in methods:
            filled = re.sub(r"\{\w+\}", lambda name: NAMES.get(name[0], "none_1"), path)
            reply = http.request(method.upper(), filled, params={"dry_run": "true"})
            message = "unknown query parameter 'dry_run'; "
            check(http, reply, 400, message, "dry_run")
    assert head(http) == before


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/models/other-model", 404),
        ("GET", "/v1/models/updates/update_999_1700000000", 404),
        ("GET", "/v1/models/updates/nonsense", 404),
        ("DELETE", "/v1/models/versions", 405),
        ("GET", "/v1/models/incremental_update", 404),
    ],
)
def test_routes_that_are_not_there(http, method, path, status) -> None:
    check(http, http.request(method, path), status, "")


def test_a_method_that_a_route_lacks_is_answered_by_those_it_has(http) -> None:
    reply = http.delete("/v1/models/versions")
    check(http, reply, 405, "/v1/models/versions takes GET, HEAD, not DELETE")
    assert reply.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ('{"parameter_name": "2.bias", "update_data": 1, "learning_rate": NaN}', "to 1, got NaN"),
        ('{"parameter_name": "2.bias", "update_data": 1, "learning_rate": "x"}', 'got "x"'),
        (
            '{"parameter_name": 7, "update_data": 1}',
            "parameter_name: Input should be a valid string",
        ),
    ],
)
def test_what_stood_in_a_field_is_repeated(http, sent, message) -> None:
    headers = {"content-type": "application/json"}
    check(http, http.post(UPDATE, content=sent, headers=headers), 400, message)


@pytest.mark.parametrize("key", ["", '""', "x" * 256])
def test_idempotency_keys_have_1_to_255_characters(http, key) -> None:
    before = head(http)
    reply = http.post(UPDATE, json=update(), headers={"Idempotency-Key": key})
    check(http, reply, 400, "1 to 255 characters", "Idempotency-Key")
    assert head(http) == before


@pytest.mark.parametrize("tag", ["abc", '"', "-1", '"1" "2"', "", ",", "*, *", "W/1", '"1"x'])
def test_if_match_is_an_etag_of_ours(http, tag) -> None:
    reply = http.post(UPDATE, json=update(), headers={"If-Match": tag})
    check(http, reply, 400, "If-Match", "If-Match")
