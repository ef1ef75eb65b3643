"""What happens meanwhile, written once for all pages that are open.

A page keeps one stream; each message of it has what stands on the page anew: the header, new rows
of its table, the tree. Pages that show the same get the same bytes, and the more a message costs
to write and send, the longer the next one waits, so that pages that are open cost the server a
bounded share of its time however many events there are. None misses an event: each stream has its
place, a seq, and what it is sent begins behind it.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from fastapi.sse import format_sse_event

from weightledger import Log
from weightledger.api.rest.listeners import Listeners
from weightledger.ledger.debug.follow import POLL_S
from weightledger.ledger.errors import LedgerError

logger = logging.getLogger(__name__)

LASTS_S = 300.0
"""After this a stream ends and the browser asks for it again, so that a key that was revoked and a
session that has ended see no more."""

_SHARE = 1 / 30  # of the time, at most, that goes into messages
_SEND_S = 0.0002  # what it costs to send one, about
_PAUSE_S = 0.05  # between two messages at least
_LONGEST_S = 5.0


@dataclass(frozen=True)
class View:
    """What an open page shows: `base` is where the server is mounted, `rows` the query of its
    table (None without one), `tree` whether it has the tree of states."""

    base: str
    rows: str | None
    tree: bool


Write = Callable[[View, int, int], str]
"""What a page of a view is sent that knows the log to the first seq, when it goes to the second."""


@dataclass(eq=False)
class FeedRound:
    """What was written since the head last moved, and the processor time that it took."""

    head: int
    fault: str | None
    messages: dict[tuple[View, int], "asyncio.Task[bytes]"] = field(default_factory=dict)
    spent_s: float = 0.0
    sent: int = 0


class Feed:
    """One log as pages see it. All but what `Log.subscribe` calls happens on one event loop.

    `fault` says what keeps the model from showing the head, which pages are told of too; `ending`
    is set by whoever stops the server.
    """

    def __init__(
        self, log: Log, fault: Callable[[], str | None], write: Write, ending: threading.Event
    ) -> None:
        self.turn = FeedRound(-1, None)
        self.listeners = Listeners(log, ending, self._look)
        self._log = log
        self._fault = fault
        self._write = write

    def listening(self, waker: asyncio.Event) -> AbstractContextManager[None]:
        """Set `waker` whenever there is something to send, a heartbeat, or the end."""
        return self.listeners.listening(waker, self._begin)

    def _begin(self) -> None:
        self.turn = FeedRound(self._log.live.head.seq, self._fault())

    async def message(self, turn: FeedRound, view: View, after: int) -> bytes:
        """What a page that knows the log up to a seq is sent in a turn."""
        task = turn.messages.get((view, after))
        if task is None:
            task = asyncio.ensure_future(asyncio.to_thread(self._made, turn, view, after))
            turn.messages[view, after] = task
        turn.sent += 1
        # One listener that hangs up does not end what others wait for.
        return await asyncio.shield(task)

    def _made(self, turn: FeedRound, view: View, after: int) -> bytes:
        started = time.thread_time()
        text = self._write(view, after, turn.head)
        turn.spent_s += time.thread_time() - started
        return format_sse_event(id=str(turn.head), data_str=text)

    async def _look(self) -> None:
        head, fault = self._log.live.head.seq, self._fault()
        if (head, fault) != (self.turn.head, self.turn.fault):
            self.turn = FeedRound(head, fault)
            self.listeners.wake()
            await self._rest(self.turn)

    async def _rest(self, turn: FeedRound) -> None:
        """Wait until what the messages cost is no more than their share of the time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.sleep(_PAUSE_S)
        while self.listeners and not self.listeners.ending.is_set():
            cost_s = turn.spent_s + _SEND_S * turn.sent
            left = min(cost_s / _SHARE, _LONGEST_S) - (loop.time() - began)
            if left <= 0:
                return
            await asyncio.sleep(min(left, POLL_S))


class FeedPlace:
    """One page's place in the feed; an `api.rest.streaming.Source`."""

    def __init__(self, feed: Feed, view: View) -> None:
        self._feed = feed
        self._view = view
        self._turn: FeedRound | None = None
        self._failed = False
        self._ends: float | None = None

    @property
    def closed(self) -> bool:
        """Whether nothing more comes: the server stops, the time is over, or reading failed."""
        ended = self._ends is not None and asyncio.get_running_loop().time() >= self._ends
        return self._feed.listeners.closed or self._failed or ended

    @property
    def beats(self) -> int:
        """How many heartbeats there were."""
        return self._feed.listeners.beats

    @contextlib.contextmanager
    def listening(self, waker: asyncio.Event, head: int) -> Iterator[None]:
        """See `Feed.listening`."""
        with self._feed.listening(waker):
            self._ends = asyncio.get_running_loop().time() + LASTS_S
            yield

    async def behind(self, after: int) -> tuple[bytes, int]:
        """What the page is sent that knows the log up to a seq, and what it knows then."""
        turn, known = self._feed.turn, self._turn
        self._turn = turn
        if after >= turn.head and (known is None or known.fault == turn.fault):
            return b"", after
        try:
            return await self._feed.message(turn, self._view, after), max(after, turn.head)
        except LedgerError as error:
            # The browser asks again, from where it is.
            logger.warning("a page that is open cannot be told what is new: %s", error)
            self._failed = True
            return b"", after
