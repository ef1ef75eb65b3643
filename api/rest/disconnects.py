"""Work for a client that may hang up before it is done."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request

T = TypeVar("T")


class ClientGone(Exception):
    """The client hung up; nobody reads a reply."""


async def unless_gone(request: Request, work: Awaitable[T], cancel: Callable[[], object]) -> T:
    """The result of `work`; when the client hangs up or waiting ends otherwise, `cancel` it.

    The request's body must have been read. Raises ClientGone.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        gone.cancel()
        if not working.done():
            working.cancel()
            cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
