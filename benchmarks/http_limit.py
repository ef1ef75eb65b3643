"""What HTTP and the database alone cost: a server that does nothing but run the bare statements.

    python -m benchmarks.http_limit DATABASE.db PORT

`GET /livez` is answered at once. A POST to any path has its body read and the statements of one
small update run by the bare driver, on a thread of its own and durable before the reply, those of
requests that wait together in one transaction: no parsing, no checks, no digests, no deltas, no
weights. `prepare` makes the database, with what one update of ours sent. Under the same uvicorn as
`weightledger serve`, so the share of `/livez` that it reaches is what there is to reach.
"""

import ast
import asyncio
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvicorn

from benchmarks.small_updates import Bare, Statement, bare, recorded
from weightledger import IncrementalUpdateRequest
from weightledger.ledger.store import rows

_REPLY = b'{"success":true,"update_id":"update_1_1","pre_metrics":{},"post_metrics":{}}'
_MOVED = [rows.COLUMNS.index(name) for name in ("event_key", "node", "parent", "number")]


def prepare(file: Path, base: Any, request: IncrementalUpdateRequest) -> None:
    """A ledger of one model and two updates, and beside it what the second sent."""
    ledger, recording = recorded(f"sqlite:///{file}")
    try:
        log = ledger.model("limit", base=base)
        log.apply(request)
        recording.taken()  # the first one asks for parameters' ids as well
        log.apply(request)
    finally:
        ledger.close()
    _values_of(file).write_text(repr(recording.taken()))


def _values_of(file: Path) -> Path:
    return file.with_suffix(".statements")


class Limit:
    """The ASGI application."""

    def __init__(self, driver: Bare, statements: Sequence[Statement]) -> None:
        (self._begin, _), (self._insert, row), (self._touch, touch), (self._commit, _) = statements
        self._row, self._touched = list(row), list(touch)
        self._driver = driver
        self._count = 0
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError(scope["type"])
        content = b'{"status":"ok"}'
        if scope["method"] == "POST":
            while (await receive()).get("more_body"):
                pass
            loop = asyncio.get_running_loop()
            done = loop.create_future()
            self._waiting.append(done)
            self._thread.submit(self._work, loop)
            await done
            content = _REPLY
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        done = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not done:
            return
        try:
            self._append(len(done))
        except BaseException as error:
            loop.call_soon_threadsafe(_answer, done, error)
            raise
        loop.call_soon_threadsafe(_answer, done, None)

    def _append(self, count: int) -> None:
        run = self._driver.run
        run(self._begin)
        for _ in range(count):
            self._count += 1
            row = list(self._row)
            for at in _MOVED:
                row[at] += self._count
            run(self._insert, row)
            run(self._touch, (row[0], *self._touched[1:]))
        run(self._commit)


def _answer(done: Sequence["asyncio.Future[None]"], error: BaseException | None) -> None:
    for one in done:
        if error is None:
            one.set_result(None)
        else:
            one.set_exception(error)


def main() -> None:
    file, port = Path(sys.argv[1]), int(sys.argv[2])
    statements: list[Statement] = ast.literal_eval(_values_of(file).read_text())
    with bare(f"sqlite:///{file}") as driver:
        app = Limit(driver, statements)
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", timeout_keep_alive=75)


if __name__ == "__main__":
    main()
