"""What was asked, sent once more to the server's own routes in this process."""

import asyncio
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI

from weightledger.api.reproducing.rebuilt import RebuiltView
from weightledger.api.rest import errors
from weightledger.api.rest.routes import inference
from weightledger.api.rest.text import routes as text
from weightledger.api.rest.workers import Workers
from weightledger.ledger.errors import InvalidRequest, LedgerError

EMBEDDINGS = "/v1/embeddings"
GENERATING = ("/v1/completions", "/v1/chat/completions")
ROUTES = ("/invocations", EMBEDDINGS, *GENERATING)


def answered(model: RebuiltView, route: str, body: bytes) -> dict[str, Any]:
    """What the server's route answers; InvalidRequest with its words where it refuses."""
    app = FastAPI(openapi_url=None)
    inference.router(model).add_to(app.router)
    text.router(model, Workers(1, 0)).add_to(app.router)
    errors.install(app)
    # On a thread of its own, so that it can be called where an event loop runs already.
    with ThreadPoolExecutor(1) as pool:
        try:
            status, answer = pool.submit(asyncio.run, _post(app, route, body)).result()
        except LedgerError:
            raise
        except Exception as error:
            raise InvalidRequest(
                f"the model fails on this request: {error!r}", param="request"
            ) from error
    got: dict[str, Any] = json.loads(answer)
    if status != 200:
        raise InvalidRequest(
            f"the request is refused with status {status}: {got['error']['message']}",
            param="request",
        )
    return got


async def _post(app: FastAPI, path: str, body: bytes) -> tuple[int, bytes]:
    """One request to an application in this process, and its reply."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": None,
        "server": None,
    }
    arrived = iter([{"type": "http.request", "body": body, "more_body": False}])
    sent: list[Mapping[str, Any]] = []

    async def receive() -> Mapping[str, Any]:
        for message in arrived:
            return message
        await asyncio.Event().wait()  # whoever asked does not go away
        raise AssertionError("unreachable")

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)  # type: ignore[arg-type]
    return sent[0]["status"], b"".join(one.get("body", b"") for one in sent[1:])


def facts_of(request: bytes) -> Mapping[str, Any]:
    """The request as far as it can be read: the route says what is wrong with it otherwise."""
    try:
        facts = json.loads(request)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def doubts(route: str, request: Mapping[str, Any]) -> tuple[str, ...]:
    """Why the same reply was not to be expected, as far as the request tells."""
    if route not in GENERATING or request.get("seed") is not None:
        return ()
    temperature = request.get("temperature")
    if temperature == 0:
        return ()
    drawn = 1.0 if temperature is None else temperature
    return (f"the text was drawn at temperature {drawn} without a seed: each time is another",)
