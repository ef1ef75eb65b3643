"""The log as it grows, read once for all who listen.

One task of the process reads what is new and encodes it; each listener has its place, a seq, and
takes what lies behind it from the events that were read last. One that has fallen far behind, or
begins there, reads pages of its own until it has caught up. So none misses an event or gets one
twice, however slow it is, and a listener that waits costs no query.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import NamedTuple

import orjson
from fastapi.sse import format_sse_event

from weightledger import Log
from weightledger.api.items import event_item
from weightledger.api.rest.listeners import Listeners
from weightledger.ledger.errors import LedgerError, Unavailable
from weightledger.ledger.store import EventStore

logger = logging.getLogger(__name__)

_KEPT = 4096  # events
_KEPT_BYTES = 8 << 20
_PAGE = 256
_BLOCK_BYTES = 256 * 1024  # that are written to a listener at a time


class Sent(NamedTuple):
    """An event as it goes over the line."""

    seq: int
    data: bytes


class Tail:
    """What was last read of a log, and the task that reads on while somebody listens.

    `ending` is set by whoever stops the server, from any thread; `close` ends everything at once.
    All but what `Log.subscribe` calls happens on one event loop.
    """

    def __init__(self, log: Log, ending: threading.Event | None = None) -> None:
        self.store: EventStore = log.history.store
        self._listeners = Listeners(log, ending or threading.Event(), self._look)
        self._problem: str | None = None
        self._kept: deque[Sent] = deque()
        self._kept_bytes = 0
        self._last = -1

    @property
    def closed(self) -> bool:
        """Whether nothing more comes: the server stops."""
        return self._listeners.closed

    @property
    def beats(self) -> int:
        """How many heartbeats there were."""
        return self._listeners.beats

    def require_open(self) -> None:
        """Unavailable when the server is about to stop."""
        if self.closed or self._listeners.ending.is_set():
            raise Unavailable("the server is stopping; ask again when it is back")

    def close(self) -> None:
        """Let every listener end behind what is read by now, in order."""
        self._listeners.close()

    def listening(self, waker: asyncio.Event, head: int) -> AbstractContextManager[None]:
        """Set `waker` whenever there is news: events, a heartbeat (`beats`), or the end (`closed`).

        `head` is the seq of the log's last event, as it was just now.
        """
        return self._listeners.listening(waker, lambda: self._begin(head))

    def _begin(self, head: int) -> None:
        self._kept.clear()
        self._kept_bytes, self._last = 0, head
        self._problem = None

    async def behind(self, after: int) -> tuple[bytes, int]:
        """Events after a seq, some or all there are, and the seq of the last of them."""
        if after >= self._last:
            return b"", after
        if self._kept and self._kept[0].seq <= after + 1:
            block: Iterator[Sent] = islice(self._kept, after + 1 - self._kept[0].seq, None)
        elif self.closed:
            return b"", after
        else:
            block = iter(await asyncio.to_thread(self._read, after + 1))
        parts: list[bytes] = []
        size = 0
        for seq, data in block:
            parts.append(data)
            size += len(data)
            after = seq
            if size >= _BLOCK_BYTES:
                break
        return b"".join(parts), after

    async def _look(self) -> None:
        try:
            while page := await asyncio.to_thread(self._read, self._last + 1):
                self._keep(page)
                self._listeners.wake()
        except LedgerError as error:
            if self._problem != str(error):  # an outage is one line
                logger.error("cannot read the log for those who listen: %s", error)
            self._problem = str(error)
        else:
            self._problem = None

    def _keep(self, page: Sequence[Sent]) -> None:
        self._kept.extend(page)
        self._kept_bytes += sum(len(sent.data) for sent in page)
        self._last = page[-1].seq
        while len(self._kept) > _KEPT or self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft().data)

    def _read(self, first: int) -> list[Sent]:
        """A page of events from a seq on; on a thread."""
        events = list(self.store.scan(first, first + _PAGE))
        notes = self.store.annotations([event.seq for event in events])
        return [
            Sent(
                event.seq,
                format_sse_event(
                    id=str(event.seq),
                    data_str=orjson.dumps(event_item(event, notes.get(event.seq))).decode(),
                ),
            )
            for event in events
        ]
