"""The log as it grows, read once for all who listen.

One task of the process reads what is new and encodes it; each listener has its place, a seq, and
takes what lies behind it from the events that were read last. One that has fallen far behind, or
begins there, reads pages of its own until it has caught up. So none misses an event or gets one
twice, however slow it is, and a listener that waits costs no query.
"""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import orjson
from fastapi.sse import format_sse_event

from weightledger import Log
from weightledger.api.items import event_item
from weightledger.ledger.debug.follow import POLL_S
from weightledger.ledger.errors import LedgerError, Unavailable
from weightledger.ledger.store import EventStore

logger = logging.getLogger(__name__)

HEARTBEAT_S = 15.0

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
        self.closed = False
        self.beats = 0
        self._ending = ending or threading.Event()
        self._kept: deque[Sent] = deque()
        self._kept_bytes = 0
        self._last = -1
        self._wakers: set[asyncio.Event] = set()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        log.subscribe(lambda _: self._committed())

    def require_open(self) -> None:
        """Unavailable when the server is about to stop."""
        if self.closed or self._ending.is_set():
            raise Unavailable("the server is stopping; ask again when it is back")

    def close(self) -> None:
        """Let every listener end behind what is read by now, in order."""
        self.closed = True
        self._wake()

    @contextlib.contextmanager
    def listening(self, waker: asyncio.Event, head: int) -> Iterator[None]:
        """Set `waker` whenever there is news: events, a heartbeat (`beats`), or the end (`closed`).

        `head` is the seq of the log's last event, as it was just now.
        """
        self._wakers.add(waker)
        if self._task is None or self._task.done():
            self._kept.clear()
            self._kept_bytes, self._last = 0, head
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._read_on())
        try:
            yield
        finally:
            self._wakers.discard(waker)
            if not self._wakers:
                self._news.set()  # the task looks up and ends

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

    def _committed(self) -> None:
        """An event of this process is durable; called by the thread that wrote it."""
        loop = self._loop
        if loop is not None and self._wakers:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and all who listened
                loop.call_soon_threadsafe(self._news.set)

    def _wake(self) -> None:
        for waker in self._wakers:
            waker.set()

    async def _read_on(self) -> None:
        problem: str | None = None
        loop = asyncio.get_running_loop()
        beaten = loop.time()
        while self._wakers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._news.wait()
            self._news.clear()
            if self._ending.is_set():
                self.close()
                return
            try:
                while page := await asyncio.to_thread(self._read, self._last + 1):
                    self._keep(page)
                    self._wake()
            except LedgerError as error:
                if problem != str(error):  # an outage is one line
                    logger.error("cannot read the log for those who listen: %s", error)
                problem = str(error)
            else:
                problem = None
            if loop.time() - beaten >= HEARTBEAT_S:
                beaten = loop.time()
                self.beats += 1
                self._wake()

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
