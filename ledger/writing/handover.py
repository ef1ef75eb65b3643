"""Commands of event loops, carried out on another thread: those that wait there go together.

However many coroutines ask while the thread is at work, it is asked once to come back, and however
many outcomes it has, it wakes the loop once: handing over takes longer than much of a small write.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Protocol

from weightledger.ledger.events import Event
from weightledger.ledger.writing.commands import Command
from weightledger.ledger.writing.job import Job


class Submit(Protocol):
    """Queues a command, and calls `told` with the job once it is done."""

    def __call__(self, command: Command, told: Callable[[Job], None]) -> Job: ...


class Handover:
    """Hands commands to `submit`, which queues them, and has `drain` called on `thread`.

    `drain` has to bring about an outcome of all that was queued before it began.
    """

    def __init__(
        self,
        submit: Submit,
        drain: Callable[[], None],
        thread: Executor,
    ) -> None:
        self._submit = submit
        self._drain = drain
        self._thread = thread
        self._asked = False
        self._inbox: _Inbox | None = None

    async def carry_out(self, command: Command) -> Event:
        """The event of a command, durable and visible; raises what kept it from that."""
        loop = asyncio.get_running_loop()
        inbox = self._inbox
        if inbox is None or inbox.loop is not loop:
            inbox = self._inbox = _Inbox(loop)
        waiting: asyncio.Future[Event] = loop.create_future()
        # Queued before it is looked whether the thread is to come, which ends before it looks at
        # the queue: one of the two sees the other.
        self._submit(command, partial(inbox.put, waiting))
        if not self._asked:
            inbox.unasked.append(waiting)
            if len(inbox.unasked) == 1:
                loop.call_soon(self._ask, inbox)
        return await waiting

    def _ask(self, inbox: "_Inbox") -> None:
        """Ask the thread to come, once the loop has done what it had to do: asked by the first, it
        would take the interpreter from those who hand over what could go together with it."""
        unasked, inbox.unasked = inbox.unasked, []
        if self._asked:
            return
        self._asked = True
        try:
            self._thread.submit(self._work)
        except BaseException as error:
            self._asked = False
            for waiting in unasked:
                if not waiting.done():
                    waiting.set_exception(error)
            if not isinstance(error, Exception):
                raise

    def _work(self) -> None:
        self._asked = False
        self._drain()


class _Inbox:
    """Outcomes on their way to an event loop; `unasked` are those of its coroutines who wait for
    what the thread has not been asked to come for yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.unasked: list[asyncio.Future[Event]] = []
        self._outcomes: deque[tuple[asyncio.Future[Event], Job]] = deque()
        self._asked = False

    def put(self, waiting: "asyncio.Future[Event]", job: Job) -> None:
        """Give the outcome of a job to who waits for it; on any thread."""
        self._outcomes.append((waiting, job))
        if not self._asked:
            self._asked = True
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits there
                self.loop.call_soon_threadsafe(self._give)

    def _give(self) -> None:
        self._asked = False
        while self._outcomes:
            waiting, job = self._outcomes.popleft()
            if waiting.done():  # who waited was cancelled; the command was carried out
                continue
            if job.error is None:
                waiting.set_result(job.result())
            else:
                waiting.set_exception(job.error)
