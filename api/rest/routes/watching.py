"""The log as it grows, as server-sent events."""

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from weightledger.api.rest import queries
from weightledger.api.rest.documentation import TEXT_READ_ERRORS, documented
from weightledger.api.rest.tail import Tail
from weightledger.ledger.debug.follow import starting_after
from weightledger.ledger.errors import InvalidRequest

_HEADER = "Last-Event-ID"
_SEQ = re.compile(r"[0-9]{1,12}")
_RETRY_MS = 2000  # after which a client that lost the connection asks again

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events, each with its seq as `id` and, as `data`, what "
        "`GET /v1/models/updates/{id}` says of it",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
_LAST_EVENT_ID: dict[str, Any] = {
    "parameters": [
        {
            "name": _HEADER,
            "in": "header",
            "required": False,
            "description": "The `id` of the last event that was received: what came after it is "
            "sent. It goes before `after`; browsers send it by themselves.",
            "schema": {"type": "string", "pattern": f"^{_SEQ.pattern}$"},
        }
    ]
}


def router(tail: Tail) -> APIRouter:
    """`GET /v1/models/events`."""
    routes = documented(prefix="/v1/models", tags=["audit"])

    @routes.get(
        "/events",
        response_class=Response,
        responses=_STREAM | TEXT_READ_ERRORS,
        openapi_extra=_LAST_EVENT_ID,
    )
    def watch_events(request: Request, query: Annotated[queries.Watch, Query()]) -> Response:
        """Every event as it is committed, in order, none missed and none twice.

        Begins behind `Last-Event-ID` or `after`, otherwise with the next event. A comment every
        15 seconds keeps the connection open. The stream ends when the server stops; ask again with
        the last `id`.
        """
        tail.require_open()
        after, param = query.after, "after"
        sent = request.headers.get(_HEADER)
        if sent is not None:
            param = _HEADER
            if not _SEQ.fullmatch(sent.strip()):
                raise InvalidRequest(
                    f"{_HEADER} must be the id of an event of this stream, which is its seq, such "
                    f"as 41; got {sent[:40]!r}",
                    param=_HEADER,
                )
            after = int(sent)
        head = tail.store.head()
        return _Stream(tail, starting_after(after, head, param), head.seq)

    return routes


class _Stream(Response):
    """Writes to one listener until it hangs up or the server stops."""

    def __init__(self, tail: Tail, after: int, head: int) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self._tail = tail
        self._after = after
        self._head = head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tail, after = self._tail, self._after
        waker = asyncio.Event()
        gone = asyncio.ensure_future(_hung_up(receive))
        gone.add_done_callback(lambda _: waker.set())
        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            # With this id a browser resumes from here, also where no event came before it lost the
            # connection.
            opening = b"retry: %d\nid: %d\n\n" % (_RETRY_MS, after)
            await send(_body(opening))
            with tail.listening(waker, self._head):
                beats = tail.beats
                while not gone.done():
                    waker.clear()
                    block, after = await tail.behind(after)
                    if block:
                        await send(_body(block))
                    elif tail.closed:
                        break
                    elif beats != tail.beats:
                        beats = tail.beats
                        await send(_body(b":\n\n"))
                    else:
                        await waker.wait()
            if not gone.done():
                await send(_body(b"", more=False))
        finally:
            gone.cancel()


def _body(data: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
