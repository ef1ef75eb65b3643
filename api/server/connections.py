"""As many connections as there are files for.

A connection is a file to the operating system, and a process may have so many open (`ulimit -n`).
Clients that keep theirs, or send their requests byte by byte, could have them all; then nothing
could be read or written any more. So some files are left for the ledger: beyond the rest, whoever
has been idle longest is hung up on, and where nobody is, who comes is told to come back.
"""

import asyncio
import logging
import os
import resource
import time

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from weightledger.api.server.closing_replies import closing
from weightledger.api.server.slow_requests import WatchedConnection

logger = logging.getLogger(__name__)

# For the database, blobs, uploads and what is read of the package, at one time.
_SPARE = 64
_FEWEST = 8
_MOST_OPEN = 65536

_OPEN_FILES = "/dev/fd"
_SAY_AGAIN_S = 60.0


def raise_limit() -> None:
    """Let this process open as many files as the system's owner allows it to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def room() -> int:
    """How many connections there may be, beside what this process has open by now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _MOST_OPEN if soft == resource.RLIM_INFINITY else soft
    return max(limit - len(os.listdir(_OPEN_FILES)) - _SPARE, _FEWEST)


def limited(most: int) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, of whose connections there are `most` at one time, none too slow."""

    class LimitedConnection(WatchedConnection):
        said_at = -_SAY_AGAIN_S
        idle_since = 0.0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.idle_since = time.monotonic()
            if len(self.connections) > most:
                self._make_room()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.idle_since = time.monotonic()

        def _make_room(self) -> None:
            now = time.monotonic()
            if now - LimitedConnection.said_at >= _SAY_AGAIN_S:
                LimitedConnection.said_at = now
                logger.warning(
                    "%d connections are as many as there are files for (ulimit -n): idle ones are"
                    " closed",
                    most,
                )
            idle = [
                other
                for other in self.connections
                if isinstance(other, LimitedConnection) and other is not self and other.is_idle
            ]
            if idle:
                goes: LimitedConnection = min(idle, key=lambda other: other.idle_since)
            else:
                goes = self
                goes.transport.write(_TURNED_AWAY)
            goes.connections.discard(goes)
            goes.transport.close()

        @property
        def is_idle(self) -> bool:
            """Whether no request has come whole as far as its body, or none since the last."""
            return self.cycle is None or self.cycle.response_complete

    return LimitedConnection


_TURNED_AWAY = closing(
    503, "the server has as many connections as it may: try again", "retry-after: 1"
)
