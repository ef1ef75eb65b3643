"""The route for updates is answered directly, and otherwise: nobody can tell which way it went.

A query, such as the `wait=committed` that goes without saying, leads through the framework. Here
twins get the same requests, one of them with the query and one without.
"""

import asyncio
import contextlib
import http.client
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import Depends, FastAPI, Request, Response
from fastapi.routing import iter_route_contexts

from tests.in_process import Here, here
from tests.waiting import PATIENCE_S
from weightledger import DynamicModelManager, DynamicUpdateConfig
from weightledger.api.rest.direct import Direct
from weightledger.api.rest.requests import require_writes
from weightledger.api.rest.scopes import admitted
from weightledger.api.server.app import create_app
from weightledger.api.server.settings import Settings

UPDATE = "/v1/models/incremental_update"
LIMIT = 4096
ADMIN = "wl_admin"


def body(**fields: Any) -> bytes:
    sent = {"parameter_name": "bias", "update_data": [0.5, -0.25, 1e-3], **fields}
    return json.dumps({name: value for name, value in sent.items() if value != "absent"}).encode()


BODIES = {
    "usual": body(),
    "one number": body(update_data=1),
    "matrix": body(parameter_name="weight", update_data=[[1, 2], [3, 4], [5, 6.5]]),
    "flat": body(parameter_name="weight", update_data=[1, 2, 3, 4, 5, 6.5]),
    "nested": body(update_data=[[[0.5, 1, 2]]]),
    "indices": body(update_data=[1.5, 2], indices=[0, 2]),
    "factors": body(
        parameter_name="weight",
        update_data="absent",
        factors={"a": [[1.0], [2.0], [3.0]], "b": [[0.5, 1.0]]},
    ),
    "all fields": body(update_type="replace", learning_rate=0.5, metadata={"é": [1, {"x": None}]}),
    "nothing changes": body(learning_rate=0),
    "refused by the guard": body(update_data=3e38, learning_rate=1, update_type="multiplicative"),
    "byte order mark": b"\xef\xbb\xbf" + body(),
    "UTF-16": body().decode().encode("utf-16"),
    "bad JSON": body()[:-1],
    "two documents": body() + body(),
    "not an object": b"[]",
    "empty": b"",
    "no UTF-8": body().replace(b"bias", b"b\xffas"),
    "name twice": b'{"parameter_name": "bias", "update_data": 1, "update_data": 2}',
    "name twice within": b'{"parameter_name":"bias","metadata":{"a":1,"\\u0061":2}}',
    "huge integer": body(update_data=10**400),
    "huge number": b'{"parameter_name": "bias", "update_data": 1e999}',
    "overflow": body(update_data=1e39),
    "NaN": b'{"parameter_name": "bias", "update_data": [NaN, 1, 2]}',
    "wrong type": body(update_data=["1", 2, 3]),
    "boolean": body(update_data=True),
    "ragged": body(update_data=[1, [2], 3]),
    "deep": b'{"parameter_name":"bias","update_data":' + b"[" * 1000 + b"]" * 1000 + b"}",
    "no data": body(update_data="absent"),
    "no name": body(parameter_name="absent"),
    "unknown name": body(parameter_name="nope"),
    "unknown field": body(learning_rte=1),
    "rate too high": body(learning_rate=1.5),
    "unknown type": body(update_type="add"),
    "data and factors": body(factors={"a": [[1.0]], "b": [[1.0]]}),
    "large metadata number": body(metadata={"n": 2**60}),
    "over the limit": body(metadata={"x": "y" * LIMIT}),
}
HEADERS: dict[str, dict[str, str]] = {
    "request id": {"X-Request-Id": "mine-1"},
    "bad request id": {"X-Request-Id": "not mine"},
    "key": {"Idempotency-Key": "k1"},
    "key again": {"Idempotency-Key": "k1"},
    "bad key": {"Idempotency-Key": " "},
    "right tag": {"If-Match": "*"},
    "wrong tag": {"If-Match": '"0"'},
    "no tag": {"If-Match": "nothing of ours; really"},
    "who and why": {"X-Actor": "ana", "X-Reason": "it%20drifts"},
    "bad reason": {"X-Reason": "%ff"},
    "foreign host": {"Host": "example.org"},
    "foreign origin": {"Origin": "https://example.org"},
    "gzip": {"Content-Encoding": "gzip"},
    "a form": {"Content-Type": "application/x-www-form-urlencoded"},
    "no type": {"Content-Type": ""},
    "type with parameters": {"Content-Type": "application/json; charset=utf-8"},
    "a key that is not wanted": {"Authorization": "Bearer x"},
    "chunks": {"Transfer-Encoding": "chunked"},
}
TAKEN = {
    *("usual", "one number", "matrix", "flat", "indices", "factors", "all fields"),
    *("nothing changes", "refused by the guard", "byte order mark"),
}
NAMES_ITS_TIME = {"timestamp", "memory_usage_mb"}


@dataclass(frozen=True)
class Twins:
    """Two servers in the same state; one is asked directly, the other with a query."""

    servers: tuple[Here, ...]

    def ask(
        self,
        content: bytes,
        headers: Mapping[str, str] | None = None,
        secrets: Sequence[str] = ("", ""),
    ) -> tuple[int, str]:
        """The status and body that both answered; they have recorded and counted the same."""
        ways = zip(self.servers, ("", "?wait=committed"), secrets, strict=True)
        replies = [
            post(one.url, UPDATE + way, content, {**(headers or {}), **_bearer(secret)})
            for one, way, secret in ways
        ]
        assert replies[0] == replies[1]
        records = [recorded(one) for one in self.servers]
        assert records[0] == records[1]
        status, _, text = replies[0]
        return status, text


def _bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"} if secret else {}


def post(url: str, path: str, content: bytes, headers: dict[str, str]) -> tuple[int, Any, str]:
    """Status, headers and body, but for the date and ids made up by the server."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE_S)
    sent = {"Content-Type": "application/json", **headers}
    sent = {name: value for name, value in sent.items() if value}
    chunked = "Transfer-Encoding" in sent
    connection.request(
        "POST", path, iter([content]) if chunked else content, sent, encode_chunked=chunked
    )
    reply = connection.getresponse()
    text = re.sub(
        r'(update_\d+)_\d+|("(?:timestamp|memory_usage_mb)":)[\d.]+', r"\1\2", reply.read().decode()
    )
    told = dict(reply.getheaders())
    connection.close()
    told.pop("date")
    if told["x-request-id"] != headers.get("X-Request-Id"):
        told["x-request-id"] = f"of {len(told['x-request-id'])} characters"
    for changing in ("retry-after", "content-length" if reply.status == 200 else ""):
        if changing in told:  # a figure of memory may have a digit more
            told[changing] = "some"
    return reply.status, [*told.items()], text


def recorded(server: Here) -> tuple[Any, ...]:
    """The last event of a server's log, and how many requests came to what, by route."""
    store = server.manager.log.history.store
    event = server.manager.log.history.head()
    with server.client(authorization=f"Bearer {ADMIN}") as client:
        lines = client.get("/metrics").text.splitlines()
    counted = sorted(line for line in lines if line.startswith("weightledger_requests_total"))
    facts = (
        event.seq,
        event.kind,
        event.state_after,
        event.idempotency_key,
        bool(event.request_id),
    )
    words = store.annotation(event.seq)
    said = None if words is None else (words.actor, words.reason, words.metadata)
    return (*facts, _timeless(event.body), event.request_digest, said, counted)


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _timeless(one) for k, one in value.items() if k not in NAMES_ITS_TIME}
    return value


@contextlib.contextmanager
def twins(folder: Path, **settings: Any) -> Iterator[Twins]:
    with contextlib.ExitStack() as opened:
        servers = []
        for name in ("direct", "ordinary"):
            torch.manual_seed(0)
            servers.append(opened.enter_context(here(folder / name, **settings)))
        yield Twins(tuple(servers))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with twins(tmp_path_factory.mktemp("plain"), max_body_bytes=LIMIT) as both:
        yield both


@pytest.mark.parametrize("name", BODIES)
def test_bodies(plain: Twins, name: str) -> None:
    status, text = plain.ask(BODIES[name])
    assert (status == 200) == (name in TAKEN), text


@pytest.mark.parametrize("name", HEADERS)
def test_headers(plain: Twins, name: str) -> None:
    plain.ask(BODIES["usual"], HEADERS[name])


def test_keys_scopes_rate_limits_and_the_two_person_rule(tmp_path: Path) -> None:
    with twins(tmp_path, api_key=ADMIN, two_person_rule=True) as both:
        statuses = []
        for name, scope, most in (("a", "write", None), ("b", "read", None), ("c", "write", 1)):
            keys = [server.manager.ledger.keys for server in both.servers]
            secrets = [one.create(name, scope, requests_per_minute=most).secret for one in keys]
            once = {"Idempotency-Key": name}
            statuses += [both.ask(BODIES["usual"], once, secrets)[0] for _ in range(2)]
        assert statuses == [202, 202, 403, 403, 202, 429]
        for wrong in ("", "Bearer", "Bearer nobody", "Basic x"):
            assert both.ask(BODIES["usual"], {"Authorization": wrong})[0] == 401
        also = {"X-Actor": "somebody else"}
        assert both.ask(BODIES["usual"], also, (ADMIN, ADMIN))[0] == 400
        assert both.ask(BODIES["bad JSON"], secrets=(ADMIN, ADMIN))[0] == 400


def test_it_is_asked_first_and_behind_all_that_the_route_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []
    takes = Direct.takes

    def noted(self: Direct, scope: Any) -> bool:
        taken.append(takes(self, scope))
        return taken[-1]

    monkeypatch.setattr(Direct, "takes", noted)
    manager = DynamicModelManager(
        torch.nn.Linear(2, 3), "m", config=DynamicUpdateConfig(backup_dir=str(tmp_path))
    )
    with contextlib.closing(manager):
        app = create_app(manager, Settings(data_dir=tmp_path, allow_runtime_updating=False))
        (route,) = (one for one in iter_route_contexts(app.routes) if one.path_format == UPDATE)
        assert [one.dependency for one in route.dependencies] == [admitted, require_writes]
        for content in (BODIES["usual"], BODIES["bad JSON"]):
            direct, ordinary = (
                asyncio.run(_asgi(app, content, way)) for way in (b"", b"wait=committed")
            )
            assert direct == ordinary
            assert direct[0] == 403
        assert taken == [True, False] * 2


async def _asgi(app: FastAPI, content: bytes, query: bytes) -> tuple[int, bytes]:
    """The status and body of an update's reply, without a server."""
    told: list[Any] = []
    size = str(len(content)).encode()
    host = [
        (b"host", b"127.0.0.1"),
        (b"content-type", b"application/json"),
        (b"content-length", size),
    ]
    scope = {"type": "http", "method": "POST", "path": UPDATE, "root_path": "", "headers": host}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Any) -> None:
        told.append(message)

    await app({**scope, "query_string": query}, receive, send)
    return told[0]["status"], told[1]["body"]


def test_a_route_that_wants_more_than_its_request_is_not_answered_so() -> None:
    def on_a_thread(request: Request) -> None: ...

    async def with_a_query(request: Request, wanted: int) -> None: ...

    async def of_nothing() -> None: ...

    for check in (on_a_thread, with_a_query, of_nothing):
        app = FastAPI()

        @app.post("/x", name="x", dependencies=[Depends(check)])
        async def x(request: Request, response: Response) -> dict[str, str]: ...

        with pytest.raises(TypeError, match=check.__name__):
            Direct(app, "x")
