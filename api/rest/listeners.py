"""Who waits for news of a log, and the one task that looks for it while somebody does."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator

from weightledger import Log
from weightledger.ledger.debug.follow import POLL_S

HEARTBEAT_S = 15.0


class Listeners:
    """The listeners of one log in this process, woken for news, heartbeats and the end.

    `look` is awaited when events are visible, whoever wrote them, and each POLL_S, and wakes them
    itself when it has something; `ending` is set by whoever stops the server, from any thread. All
    but what `Log.subscribe` calls happens on one event loop.
    """

    def __init__(
        self, log: Log, ending: threading.Event, look: Callable[[], Awaitable[None]]
    ) -> None:
        self.closed = False
        self.beats = 0
        self.ending = ending
        self._look = look
        self._wakers: set[asyncio.Event] = set()
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        log.subscribe(lambda _: self._committed(), lambda _: self._committed())

    def __bool__(self) -> bool:
        """Whether somebody listens."""
        return bool(self._wakers)

    def wake(self) -> None:
        """Wake all who listen."""
        for waker in self._wakers:
            waker.set()

    def close(self) -> None:
        """Let every listener end behind what there is by now."""
        self.closed = True
        self.wake()

    @contextlib.contextmanager
    def listening(self, waker: asyncio.Event, begin: Callable[[], None]) -> Iterator[None]:
        """Set `waker` whenever there is something; `begin` is called by the first who listens."""
        self._wakers.add(waker)
        if self._task is None or self._task.done():
            begin()
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._go_on())
        try:
            yield
        finally:
            self._wakers.discard(waker)
            if not self._wakers:
                self._news.set()  # the task looks up and ends

    def _committed(self) -> None:
        """Events are visible; called by the thread that wrote or followed them."""
        loop = self._loop
        if loop is not None and self._wakers:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and all who listened
                loop.call_soon_threadsafe(self._news.set)

    async def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        beaten = loop.time()
        while self._wakers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._news.wait()
            self._news.clear()
            if self.ending.is_set():
                self.close()
                return
            await self._look()
            if loop.time() - beaten >= HEARTBEAT_S:
                beaten = loop.time()
                self.beats += 1
                self.wake()
