"""What open pages are sent: written once for all, missed by none, for a share of the time."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import pytest

from weightledger.api.dashboard import feed
from weightledger.api.dashboard.doors import FILES
from weightledger.api.dashboard.feed import Feed, FeedPlace, View
from weightledger.ledger.errors import Unavailable

ALL = View("", "", tree=False)
OTHER = View("", "actor=anna", tree=False)


class Log:
    """What a feed asks of a log: its live head, and to be told of commits."""

    def __init__(self) -> None:
        self.live = SimpleNamespace(head=SimpleNamespace(seq=0))
        self._listeners: list[Callable[[Any], None]] = []

    def subscribe(self, listener: Callable[[Any], None], followed: Callable[[Any], None]) -> None:
        self._listeners += [listener, followed]

    def commit(self, count: int = 1) -> None:
        self.live.head.seq += count
        for listener in self._listeners:
            listener(None)


class Pages:
    """A feed with as many pages as one likes, each with what it was sent."""

    def __init__(self) -> None:
        self.log = Log()
        self.fault: str | None = None
        self.written: list[tuple[View, int, int]] = []
        self.fails = False
        self.ending = threading.Event()
        self.feed = Feed(self.log, lambda: self.fault, self.write, self.ending)  # type: ignore[arg-type]

    def write(self, view: View, after: int, head: int) -> str:
        if self.fails:
            raise Unavailable("the database is away")
        self.written.append((view, after, head))
        return f"{after}-{head}"

    async def read(self, view: View, after: int) -> AsyncIterator[tuple[int, int]]:
        """From which seq to which each message goes that a page is sent."""
        place, waker = FeedPlace(self.feed, view), asyncio.Event()
        with place.listening(waker, 0):
            while True:
                waker.clear()
                block, known = await place.behind(after)
                if block:
                    yield after, known
                    after = known
                elif place.closed:
                    return
                else:
                    await waker.wait()


async def following(pages: Pages, view: View, after: int, until: int) -> list[tuple[int, int]]:
    stretches = []
    async for stretch in pages.read(view, after):
        stretches.append(stretch)
        if stretch[1] >= until:
            break
    return stretches


async def written_by_now(pages: Pages, count: int) -> None:
    while len(pages.written) < count:
        await asyncio.sleep(0)


def test_fifty_pages_of_one_view_are_written_once_and_miss_nothing() -> None:
    async def run() -> None:
        pages = Pages()
        readers = [asyncio.create_task(following(pages, ALL, 0, 40)) for _ in range(50)]
        other = asyncio.create_task(following(pages, OTHER, 0, 40))
        for _ in range(8):
            await asyncio.sleep(0)
            pages.log.commit(5)
        for stretches in await asyncio.gather(*readers, other):
            assert stretches[0][0] == 0
            assert stretches[-1][1] == 40
            ends = [end for _, end in stretches]
            assert [begin for begin, _ in stretches[1:]] == ends[:-1]
        assert len(pages.written) == len(set(pages.written))

    asyncio.run(run())


def test_a_page_that_comes_back_is_sent_what_it_missed() -> None:
    async def run() -> None:
        pages = Pages()
        pages.log.commit(30)
        assert await following(pages, ALL, 10, 30) == [(10, 30)]

    asyncio.run(run())


def test_what_changes_without_an_event_is_told() -> None:
    async def run() -> None:
        pages = Pages()
        reader = asyncio.create_task(following(pages, ALL, 0, 1))
        await asyncio.sleep(0)
        pages.fault = "the engine is away"
        await written_by_now(pages, 1)
        assert pages.written == [(ALL, 0, 0)]
        pages.log.commit()
        await reader

    asyncio.run(run())


def test_the_more_messages_cost_the_longer_the_next_one_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        waited.append(seconds)
        await sleep(0)

    async def run(spent_s: float) -> float:
        pages = Pages()
        waited.clear()
        turn = feed.FeedRound(1, None, spent_s=spent_s)
        times = iter([0.0, *[0.2 * n for n in range(1000)]])
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: next(times))
        pages.feed.listeners._wakers.add(asyncio.Event())
        await pages.feed._rest(turn)
        return sum(waited)

    monkeypatch.setattr(feed.asyncio, "sleep", noted)
    cheap, dear = asyncio.run(run(0.0)), asyncio.run(run(0.05))
    assert cheap < 0.1
    assert dear > 1.0


def test_a_stream_ends_where_the_log_cannot_be_read_or_the_server_stops() -> None:
    async def run() -> None:
        pages = Pages()
        pages.fails = True
        pages.log.commit()
        assert await following(pages, ALL, 0, 1) == []
        stopped = Pages()
        reader = asyncio.create_task(following(stopped, ALL, 0, 1))
        await asyncio.sleep(0)
        stopped.ending.set()
        assert await reader == []

    asyncio.run(run())


def test_all_scripts_together_are_small() -> None:
    folder = files("weightledger.api.dashboard") / "static"
    sizes = [len(folder.joinpath(name).read_bytes()) for name in FILES if name.endswith(".js")]
    assert sum(sizes) < 100 * 1024
