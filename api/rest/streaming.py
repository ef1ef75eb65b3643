"""Server-sent events: one listener, written to until it hangs up or nothing more comes."""

import asyncio
from contextlib import AbstractContextManager
from typing import Any, Protocol

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from weightledger.api.rest.errors import error_response
from weightledger.api.rest.keyring import Refusal

_RETRY_MS = 2000  # after which a client that lost the connection asks again


class Source(Protocol):
    """What a stream is read from. `beats` counts heartbeats, `closed` is true at the end."""

    @property
    def closed(self) -> bool: ...

    @property
    def beats(self) -> int: ...

    def listening(self, waker: asyncio.Event, head: int) -> AbstractContextManager[None]:
        """Set `waker` whenever there is news; `head` is the log's last seq, as it was just now."""

    async def behind(self, after: int) -> tuple[bytes, int]:
        """What comes after a seq, some or all there is, and the seq that it goes to."""


class EventStream(Response):
    """Writes to one listener until it hangs up, its key counts no more, or the server stops."""

    def __init__(self, source: Source, after: int, head: int) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self._source = source
        self._after = after
        self._head = head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        source, after = self._source, self._after
        refusal_now = scope.get("state", {}).get("refusal_now", _admitted)
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
            with source.listening(waker, self._head):
                beats = source.beats
                while not gone.done():
                    waker.clear()
                    block, after = await source.behind(after)
                    beat = beats != source.beats
                    if (block or beat) and (refusal := refusal_now()) is not None:
                        await send(_body(_refused(refusal)))
                        break
                    if block:
                        await send(_body(block))
                    elif source.closed:
                        break
                    elif beat:
                        beats = source.beats
                        await send(_body(b":\n\n"))
                    else:
                        await waker.wait()
            if not gone.done():
                await send(_body(b"", more=False))
        finally:
            gone.cancel()


def _admitted() -> Refusal | None:
    """Where somebody else's application says who may ask, it says so once."""
    return None


def _refused(refusal: Refusal) -> bytes:
    """The last event of a stream whose key counts no more: what a request would be answered."""
    body = bytes(error_response(refusal.status, refusal.message).body)
    return b"event: refused\ndata: %b\n\n" % body


def _body(data: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
