"""Bad requests made from the OpenAPI document: every route, every field, every way to be wrong.

Each is answered in the one form by a 4xx; afterwards the log has no new event, and the idempotency
key that all of them carried is still free.
"""

import json
import math
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema_rs
import pytest

from tests.serving import Server

JSON = "application/json"
HUGE = 10**400
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2, 1.5, 1e300, HUGE, "", "x", "x" * 10_000),
    *([], {}, [[]], [None], ["x"], [{}], {"x": 1}, {"": None}, [1, "x"]),
)
QUERY_VALUES = {
    "integer": ("x", "", "1.5", "-1", "9" * 30, "1,2", "0x1", "NaN"),
    "number": ("x", "", "nan", "inf", "-inf", "-0.1", "1.1", "1e999", "0,1"),
    "enum": ("", "nope", "additive,replace"),
    "date-time": ("", "yesterday-ish", "2026-13-01", "2026-11-22T25:00:00Z"),
}
RAW_BODIES = (
    *(b"", b"{", b"}", b"\xff\xfe", b"\x00", b"nul", b"[" * 50_000, b'{"a":' * 50_000, b"{}{}"),
    *(b'{"description":"\xed\xa0\x80"}', b"'x'", b"NaN", b"1" * 5000),
)


class Operation:
    """One method of one path, with what its document says of its body."""

    def __init__(self, method: str, path: str, described: dict[str, Any], schemas: Any) -> None:
        self.method, self.path, self.described = method, path, described
        content = described.get("requestBody", {}).get("content", {})
        self.media = content.get(JSON)
        self.binary = next((kind for kind in content if kind != JSON), None)
        if self.media is not None:
            self.schema = schemas[self.media["schema"]["$ref"].rpartition("/")[2]]
            self.example = next(iter(self.media["examples"].values()))["value"]

    def parameters(self, place: str) -> list[dict[str, Any]]:
        return [one for one in self.described.get("parameters", []) if one["in"] == place]

    @property
    def url(self) -> str:
        """With path parameters filled in by a name that nothing has."""
        return self.path.replace("{", "no-").replace("}", "")


def operations(http: httpx2.Client) -> list[Operation]:
    document = http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    return [
        Operation(method.upper(), path, described, schemas)
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    ]


def wrong_bodies(operation: Operation) -> Iterator[Any]:
    """Bodies that the schema refuses: a field missing, one too many, or of another type."""
    valid = jsonschema_rs.validator_for(operation.schema).is_valid
    assert valid(operation.example)
    example = operation.example
    candidates: list[Any] = [*VALUES, {**example, "no_such_field": 1}]
    candidates += [
        {key: one for key, one in example.items() if key != missing} for missing in example
    ]
    candidates += [
        {**example, name: value} for name in operation.schema["properties"] for value in VALUES
    ]
    return (body for body in candidates if not valid(body))


def wrong_queries(operation: Operation) -> Iterator[dict[str, str]]:
    declared = operation.parameters("query")
    needed = {one["name"]: "head" for one in declared if one["required"]}
    if declared:
        yield {**needed, "no_such_parameter": "1"}
    for one in declared:
        schema = json.dumps(one["schema"])
        for word, values in QUERY_VALUES.items():
            if f'"{word}"' in schema and '"maxLength"' not in schema:
                for value in values:
                    if not (word == "number" and is_number_of(one["schema"], value)):
                        yield {**needed, one["name"]: value}


def is_number_of(schema: Any, text: str) -> bool:
    """Whether a text is a number that the schema takes: not every number has a greatest."""
    try:
        number = float(text)
    except ValueError:
        return False
    return math.isfinite(number) and jsonschema_rs.is_valid(schema, number)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx2.Client]:
    with server.client() as http:
        yield http


@pytest.fixture(scope="module")
def listed(client: httpx2.Client) -> list[Operation]:
    return operations(client)


@pytest.fixture
def unchanged(client: httpx2.Client) -> Iterator[dict[str, str]]:
    """Headers with a key for all bad requests of a test, which leave it and the log alone."""
    key = {"Idempotency-Key": str(uuid.uuid4())}
    before = client.get("/v1/models/updates", params={"limit": 1}).json()
    digest = client.get("/readyz").json()["digest"]
    yield key
    assert client.get("/v1/models/updates", params={"limit": 1}).json() == before
    assert client.get("/readyz").json()["digest"] == digest
    free = client.post("/v1/models/create_version", json={"description": "free"}, headers=key)
    assert free.status_code == 200, free.text


def refused(reply: httpx2.Response, why: str) -> None:
    assert 400 <= reply.status_code < 500, (why, reply.status_code, reply.text[:300])
    assert reply.headers["content-type"] == JSON, why
    error = reply.json()
    assert set(error) == {"error"}, why
    assert set(error["error"]) == {"message", "type", "param", "code"}, why
    assert error["error"]["message"], why
    assert reply.headers["x-request-id"], why


def test_fields_of_bodies(client, listed, unchanged) -> None:
    sent = 0
    for operation in (one for one in listed if one.media is not None):
        for body in wrong_bodies(operation):
            raw = json.dumps(body).encode()
            headers = {**unchanged, "content-type": JSON}
            reply = client.request(operation.method, operation.url, content=raw, headers=headers)
            refused(reply, f"{operation.path} {raw[:200]!r}")
            sent += 1
    assert sent > 500


def test_bodies_that_are_no_json(client, listed, unchanged) -> None:
    for operation in (one for one in listed if one.method == "POST"):
        takes_none = operation.media is None and operation.binary is None
        for raw in () if takes_none else RAW_BODIES:
            headers = {**unchanged, "content-type": operation.binary or JSON}
            reply = client.post(operation.url, content=raw, headers=headers)
            refused(reply, f"{operation.path} {raw[:80]!r}")
        for kind in ("text/plain", "multipart/form-data", "application/xml"):
            headers = {**unchanged, "content-type": kind}
            reply = client.post(operation.url, content=b"{}", headers=headers)
            refused(reply, f"{operation.path} {kind}")


def test_query_parameters(client, listed, unchanged) -> None:
    sent = 0
    for operation in listed:
        for query in wrong_queries(operation):
            headers = dict(unchanged)
            if operation.binary:
                headers["content-type"] = operation.binary
            reply = client.request(operation.method, operation.url, params=query, headers=headers)
            refused(reply, f"{operation.path} {query}")
            assert reply.json()["error"]["param"] in query, (operation.path, query, reply.text)
            sent += 1
    assert sent > 50


def test_headers_of_writes(client, listed, unchanged) -> None:
    wrong = (
        *({"If-Match": tag} for tag in ("", "x", "-1", '"1" "2"', '"x', "W/", "1.5", "*,*")),
        *({"Idempotency-Key": key} for key in ("", '""', "x" * 256, b"\xe9", b"a\tb")),
    )
    writes = [
        operation
        for operation in listed
        if any(one["name"].lower() == "if-match" for one in operation.parameters("header"))
    ]
    assert len(writes) > 5
    for operation in writes:
        for header in wrong:
            reply = client.post(
                operation.url,
                content=json.dumps(operation.example).encode() if operation.media else b"",
                headers={**unchanged, **header, "content-type": operation.binary or JSON},
            )
            refused(reply, f"{operation.path} {header}")


def test_paths(client, listed, unchanged) -> None:
    names = ("nope", "%00", "%2e%2e%2f", "x" * 3000, "%ff", "seq:-1", "head~x", "v1_x", "%F0%9F")
    for operation in (one for one in listed if "{" in one.path):
        for name in names:
            start, _, rest = operation.path.partition("{")
            url = start + name + rest.partition("}")[2]
            refused(client.request(operation.method, url, headers=unchanged), url)
    for operation in listed:
        reply = client.request("PATCH", operation.url, headers=unchanged)
        refused(reply, operation.path)
        assert reply.status_code == 405
        assert operation.method in reply.headers["allow"]
