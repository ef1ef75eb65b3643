"""What requests came to: counted by route and status, and whether writes go through.

A write that fails for the server's reasons begins an outage, the next one that succeeds ends it;
both are a line of the log, and what lies between is counted.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

# Nothing is wrong: too many readers or writers at this moment, or the server is stopping.
_NO_OUTAGE = frozenset({"unavailable", "conflict"})


@dataclass(frozen=True, slots=True)
class Outage:
    """Writes fail: since when (seconds since 1970), how many so far, and the last one's code."""

    since: float
    refused: int
    code: str


class Writes:
    """Whether writes go through, by the last ones' replies. Safe to use from any thread."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._outage: Outage | None = None

    @property
    def outage(self) -> Outage | None:
        """What keeps writes from going through; None when the last one did."""
        return self._outage

    def failed(self, code: str) -> None:
        """A write was answered by 5xx, with this code."""
        if code in _NO_OUTAGE:
            return
        with self._lock:
            before = self._outage
            since = before.since if before else self._clock()
            self._outage = Outage(since, before.refused + 1 if before else 1, code)
        if before is None or before.code != code:
            logger.error("writes fail: %s", code, extra={"code": code})

    def succeeded(self) -> None:
        """A write went through."""
        with self._lock:
            before, self._outage = self._outage, None
        if before is not None:
            lasted_s = self._clock() - before.since
            logger.warning(
                "writes go through again after %.1f s; %d were refused", lasted_s, before.refused
            )


class ObservedRequests:
    """ASGI middleware: tells `seen(route, method, status, state)` what each request came to.

    `route` is the path's template, so that ids do not multiply the series; "none" for no route.
    """

    def __init__(self, app: ASGIApp, seen: Callable[[str, str, int, dict[str, object]], None]):
        self.app = app
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # nobody was there any more

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        finally:
            route = getattr(scope.get("route"), "path_format", "none")
            self._seen(route, scope["method"], status, scope.get("state", {}))
