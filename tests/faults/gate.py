"""What stands between a client and an S3 server and spoils it: full, cut off, cut short, away."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_QUOTA = b"<Error><Code>QuotaExceeded</Code><Message>quota</Message></Error>"


class Gate:
    """Forwards requests to a server; `fault` says what happens to them instead.

    full, quota: uploads are refused. cut: the connection is lost in the middle of an upload.
    short: replies end in the middle. away: nobody answers. `halfway` is set in the middle of an
    upload that is cut.
    """

    def __init__(self, port: int) -> None:
        self.fault: str | None = None
        self.halfway = threading.Event()
        self.served = port
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def open(self) -> Iterator["Gate"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def _handler(gate: Gate) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle_one_request()

        def forward(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            uploads = self.command in ("PUT", "POST")
            if gate.fault == "away":
                return self.hang_up()
            if gate.fault == "cut" and uploads and size:
                self.rfile.read(size // 2)
                gate.halfway.set()
                return self.hang_up()
            body = self.rfile.read(size)
            if gate.fault == "full" and uploads:
                return self.answer(507, {}, b"")
            if gate.fault == "quota" and uploads:
                return self.answer(403, {}, _QUOTA)
            upstream = http.client.HTTPConnection("127.0.0.1", gate.served)
            upstream.request(self.command, self.path, body, dict(self.headers))
            reply = upstream.getresponse()
            content = reply.read()
            self.answer(reply.status, dict(reply.getheaders()), content)
            upstream.close()
            return None

        def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            length = headers.get("Content-Length") if self.command == "HEAD" else len(content)
            self.send_header("content-length", str(length))
            self.end_headers()
            if gate.fault == "short" and "range" in self.headers:
                self.wfile.write(content[: len(content) // 2])
                return self.hang_up()
            if self.command != "HEAD":
                self.wfile.write(content)
            return None

        def hang_up(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_args: Any) -> None:
            """Tests print nothing."""

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward  # noqa: N815

    return Handler
