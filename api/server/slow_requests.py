"""Requests that come to no end: a head or a body of which hardly anything arrives.

What counts is progress, not how long it takes: a large upload over a slow line goes on. Whoever
sends less than LEAST_BYTES of a body in WINDOW_S, or does not come to the end of a head, is
answered 408 and hung up on; so is, without another answer, whoever goes on sending a body that was
answered already. While the server itself does not read on, nobody is to blame.
"""

import asyncio
import logging
from typing import Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from weightledger.api.server.closing_replies import closing

logger = logging.getLogger(__name__)

WINDOW_S = 30.0
LEAST_BYTES = 15_000
LOOK_S = 5.0


class WatchedConnection(HttpToolsProtocol):
    """uvicorn's protocol, which looks after all connections of a server every LOOK_S.

    Each server has a subclass of its own.
    """

    looks: asyncio.TimerHandle | None = None

    coming: Literal["head", "body"] | None = None  # what of a request is under way to us
    arrived_bytes = 0  # of bodies
    watched_since: float | None = None
    arrived_then = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if type(self).looks is None:
            self._look_again()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.coming = "head"
        self.watched_since = None

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.coming = "body"

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self.arrived_bytes += len(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.coming = None

    def _look_again(self) -> None:
        type(self).looks = self.loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        type(self).looks = None
        for one in list(self.connections):
            if isinstance(one, WatchedConnection):
                one._judge(self.loop.time())
        if self.connections:
            self._look_again()

    def _judge(self, now: float) -> None:
        if self.coming is None or self.flow.read_paused or self._answers_before():
            self.watched_since = None
        elif self.watched_since is None:
            self.watched_since, self.arrived_then = now, self.arrived_bytes
        elif now - self.watched_since >= WINDOW_S:
            arrived = self.arrived_bytes - self.arrived_then
            self.watched_since, self.arrived_then = now, self.arrived_bytes
            if arrived < LEAST_BYTES or self.cycle.response_complete:
                self._give_up(arrived)

    def _answers_before(self) -> bool:
        """Whether what comes is the head of a request behind one that is still answered."""
        cycle = self.cycle
        return self.coming == "head" and cycle is not None and not cycle.response_complete

    def _give_up(self, arrived: int) -> None:
        logger.info("a request was given up: %d bytes came in %.0f s", arrived, WINDOW_S)
        cycle = self.cycle
        if self.coming == "head" or not cycle.response_started:
            self.transport.write(_TOO_SLOW)
        if self.coming == "body" and not cycle.response_complete:
            cycle.disconnected = True  # it answers no more
            cycle.message_event.set()
        self.transport.close()


_TOO_SLOW = closing(408, "the request came too slowly, or not to its end: send it again")
