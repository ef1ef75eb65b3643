"""Requests that come to no end, at a server in this process whose patience is short."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.waiting import PATIENCE_S, until
from weightledger.api.server import slow_requests
from weightledger.api.server.connections import limited

WINDOW_S = 0.5
LEAST = 1000


class Served:
    """A server that reads bodies, refuses them, or answers before it has read them."""

    def __init__(self) -> None:
        self.port = 0
        self.gone = 0

    async def read(self, request: Request) -> Response:
        try:
            return PlainTextResponse(str(len(await request.body())))
        except ClientDisconnect:
            self.gone += 1
            raise

    async def refuse(self, _request: Request) -> Response:
        return PlainTextResponse("no", status_code=401)

    def connect(self, sent: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
        connection.sendall(sent)
        return connection


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(slow_requests, "WINDOW_S", WINDOW_S)
    monkeypatch.setattr(slow_requests, "LEAST_BYTES", LEAST)
    monkeypatch.setattr(slow_requests, "LOOK_S", 0.05)
    made = Served()
    routes = [
        Route("/read", made.read, methods=["POST"]),
        Route("/refuse", made.refuse, methods=["POST"]),
    ]
    config = uvicorn.Config(Starlette(routes=routes), log_level="error", http=limited(100))
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        made.port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until(lambda: server.started, "the server has not started")
        yield made
        server.should_exit = True
        thread.join(PATIENCE_S)


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def trickle(connection: socket.socket, piece: bytes, each_s: float) -> bytes:
    """What the server says while pieces are sent until it hangs up."""
    said = b""
    connection.settimeout(each_s)
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        try:
            more = connection.recv(65536)
            if not more:
                return said
            said += more
        except TimeoutError:
            with contextlib.suppress(OSError):
                connection.sendall(piece)
        except ConnectionResetError:
            return said
    raise AssertionError(f"the server did not hang up; it said {said!r}")


SLOW = {
    "a body, byte by byte": (head("/read", "Content-Length: 1000000"), b"x"),
    "chunks, byte by byte": (head("/read", "Transfer-Encoding: chunked"), b"1\r\nx\r\n"),
    "a body that never begins": (head("/read", "Content-Length: 1000000"), b""),
    "a head, line by line": (head("/read")[:-2], b"X-More: 1\r\n"),
    "half a first line": (b"POST /re", b""),
}


@pytest.mark.parametrize("sent", SLOW)
def test_what_hardly_arrives_is_answered_408_and_hung_up_on(served: Served, sent: str) -> None:
    begun, piece = SLOW[sent]
    with served.connect(begun) as connection:
        said = trickle(connection, piece, 0.05)
    first, _, body = said.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 408 "), said
    assert json.loads(body)["error"]["code"] == "request_timeout"
    if begun.endswith(b"\r\n\r\n"):
        until(lambda: served.gone == 1, "the request goes on without its client")


def test_a_large_body_over_a_slow_line_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes more than twice as long as a body may stand still."""
    patience_s = 4 * WINDOW_S  # this process may have to wait for a processor meanwhile
    monkeypatch.setattr(slow_requests, "WINDOW_S", patience_s)
    length = 25 * LEAST
    with served.connect(head("/read", f"Content-Length: {length}")) as connection:
        for _ in range(25):
            connection.sendall(bytes(LEAST))
            time.sleep(patience_s / 10)
        assert connection.recv(65536).endswith(str(length).encode())


def test_a_second_request_that_stands_still_is_answered_too(served: Served) -> None:
    with served.connect(head("/read", "Content-Length: 2") + b"ok") as connection:
        assert connection.recv(65536).endswith(b"2")
        connection.sendall(head("/read", "Content-Length: 2") + b"o")
        assert trickle(connection, b"", 0.05).startswith(b"HTTP/1.1 408 ")


def test_who_goes_on_sending_what_was_refused_is_hung_up_on(served: Served) -> None:
    """However fast: an endless body that nobody reads."""
    with served.connect(head("/refuse", "Transfer-Encoding: chunked")) as connection:
        said = trickle(connection, b"%x\r\n%s\r\n" % (LEAST, bytes(LEAST)), 0.01)
    assert said.startswith(b"HTTP/1.1 401 ")
    assert said.count(b"HTTP/1.1") == 1


def test_an_idle_connection_is_kept(served: Served) -> None:
    with served.connect(b"") as connection:
        time.sleep(3 * WINDOW_S)
        for _ in range(2):
            connection.sendall(head("/read", "Content-Length: 2") + b"ok")
            assert connection.recv(65536).endswith(b"2")
            time.sleep(2 * WINDOW_S)
