"""The address that a server listens on, taken before anything is opened."""

import contextlib
import errno
import socket
from collections.abc import Iterator

from weightledger.ledger.errors import InvalidRequest

# How long an idle connection is kept, in seconds: longer than clients and proxies keep theirs
# (httpx 5, aiohttp 15, nginx and AWS' load balancers 60). The side that sends has to be the one
# that closes, or a request can meet the close of the other side and be lost.
KEEP_ALIVE_S = 75


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at this address, port 0 being any free one; InvalidRequest when it cannot be had.

    It listens only once the server does, so that nobody waits for a model that is being loaded.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise InvalidRequest(f"--host {host} is no address here: {error}", param="host") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InvalidRequest(
                    f"port {port} of {host} is in use: stop what listens there, or choose another "
                    "with --port (0 takes a free one)",
                    param="port",
                ) from None
            raise InvalidRequest(
                f"cannot listen on {host} port {port}: {error.strerror}", param="port"
            ) from None
        yield listener


def url_of(listener: socket.socket) -> str:
    """Where the server is reached from this machine or, listening everywhere, from others."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
