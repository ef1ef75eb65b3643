"""A small reverse proxy, in a process of its own, that shows a server below a path.

Where the server does not answer it does so itself, in HTML, as others do.
"""

import contextlib
import http.client
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_HOP = {"connection", "keep-alive", "transfer-encoding"}


@contextlib.contextmanager
def proxied(server: str, prefix: str) -> Iterator[str]:
    """The URL of a proxy that passes on what comes below `prefix`, without it."""
    command = [sys.executable, str(Path(__file__)), server, prefix]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


class _Proxy(BaseHTTPRequestHandler):
    def _pass_on(self) -> None:
        server, prefix = urlsplit(sys.argv[1]).netloc, sys.argv[2]
        if not self.path.startswith(prefix):
            self.send_error(404)
            return
        upstream = http.client.HTTPConnection(server)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            upstream.request(
                self.command, self.path.removeprefix(prefix) or "/", body, dict(self.headers)
            )
            reply = upstream.getresponse()
        except OSError:
            self.send_error(502)
            return
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            while piece := reply.read1(65536):
                self.wfile.write(piece)
                self.wfile.flush()

    do_GET = do_POST = _pass_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    listener = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    listener.daemon_threads = True
    sys.stdout.write(f"{listener.server_port}\n")
    sys.stdout.flush()
    listener.serve_forever()
