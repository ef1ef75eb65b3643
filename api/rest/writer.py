"""Who writes the log that a replica follows: named to those who would write here, or asked.

The writer is found through the database, as commands find it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import httpx2
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from weightledger.ledger.errors import LedgerError, OperationDisabled, Unavailable
from weightledger.ledger.http import async_client
from weightledger.ledger.sql import presence

logger = logging.getLogger(__name__)

_KNOWN_S = 5.0  # for which an address that was found is not looked up again
_PATIENCE_S = 300.0  # for the writer's answer: it may wait for its turn
_HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te"),
        *("trailer", "transfer-encoding", "upgrade", "host", "content-length"),
    }
)


class HandedOn(Exception):
    """A write that the writer at `url` is to answer."""

    def __init__(self, writer: "WriterServer", url: str) -> None:
        super().__init__(url)
        self.writer = writer
        self.url = url


class WriterServer:
    """The server that writes a log, by `url` where that is given, else as it is announced.

    `proxied`: writes are handed on to it instead of refused.
    """

    def __init__(self, database_url: str, url: str | None, refusal: str, *, proxied: bool) -> None:
        self._database_url = database_url
        self._given = url
        self._refusal = refusal
        self._proxied = proxied
        self._known: tuple[float, str | None] | None = None

    async def refuse(self) -> None:
        """Raise OperationDisabled, which names the writer, or HandedOn."""
        url = await self.url()
        if self._proxied:
            if url is None:
                raise Unavailable("no server writes this log now, so the write is not handed on")
            raise HandedOn(self, url)
        where = "no server writes it now" if url is None else f"write to {url}"
        raise OperationDisabled(f"{self._refusal}: {where}")

    async def url(self) -> str | None:
        """Where the writer is, if it is known."""
        if self._given is not None:
            return self._given
        now = time.monotonic()
        if self._known is None or now - self._known[0] > _KNOWN_S:
            self._known = now, await asyncio.to_thread(self._look_up)
        return self._known[1]

    def _look_up(self) -> str | None:
        try:
            announced = presence.servers(self._database_url)
        except LedgerError as error:
            logger.warning("who writes the log is not known: %s", error)
            return None
        return next((one.url for one in announced if one.url), None)


async def hand_on(request: Request, error: Exception) -> Response:
    """The writer's reply to a request, body and all."""
    assert isinstance(error, HandedOn)
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    headers = [
        (name, value) for name, value in request.headers.raw if name.decode() not in _HOP_BY_HOP
    ]
    client = async_client(error.url, timeout=_PATIENCE_S)
    try:
        asked = client.build_request(
            request.method, target, headers=headers, content=request.stream()
        )
        reply = await client.send(asked, stream=True)
    except httpx2.HTTPError as problem:
        await client.aclose()
        raise Unavailable(
            f"the writer at {error.url} does not answer ({problem}); whether it took the write is"
            " not known. Send it again with the same idempotency key"
        ) from None

    async def content() -> AsyncIterator[bytes]:
        try:
            async for chunk in reply.aiter_raw():
                yield chunk
        finally:
            await reply.aclose()
            await client.aclose()

    answer = StreamingResponse(content(), status_code=reply.status_code)
    answer.raw_headers = [
        (name.lower(), value)
        for name, value in reply.headers.raw
        if name.lower().decode() not in _HOP_BY_HOP
    ]
    return answer
