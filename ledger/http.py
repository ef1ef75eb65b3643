"""The one way to make an HTTP client: proxies are for other machines, never for this one."""

import functools
import ipaddress
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

import httpx2

from weightledger.ledger.errors import InvalidRequest

LOOPBACK = ("localhost", "127.0.0.0/8", "::1")
"""What never goes through a proxy, as NO_PROXY has it."""

_NAMES = ("localhost", "localhost.")


def client(base_url: str, *, param: str | None = None, **options: Any) -> httpx2.Client:
    """A client of the server at `base_url`; `options` are httpx's.

    Requests to this machine go straight, whatever HTTP_PROXY says. Raises InvalidRequest for a URL
    that is none, or one that needs a kind of proxy that is not supported here; `param` names the
    setting it came from.
    """
    try:
        host = urlsplit(base_url).hostname
        if urlsplit(base_url).scheme not in ("http", "https") or not host:
            raise ValueError("expected http://HOST:PORT or https://HOST")
        away = not is_loopback(host)
        return httpx2.Client(
            base_url=base_url, trust_env=away, verify=_certificates(away), **options
        )
    except ImportError as error:  # a SOCKS proxy needs a package of its own
        raise InvalidRequest(
            f"{base_url} would be reached by a proxy of the environment, which cannot be used: "
            f"{error}. Name the host in NO_PROXY to go straight",
            param=param,
        ) from None
    except (ValueError, httpx2.InvalidURL) as error:
        raise InvalidRequest(f"{base_url!r} is no server's URL: {error}", param=param) from None


def async_client(base_url: str, *, timeout: float) -> httpx2.AsyncClient:
    """As `client`, for an event loop."""
    away = not is_loopback(urlsplit(base_url).hostname or "")
    return httpx2.AsyncClient(
        base_url=base_url, trust_env=away, verify=_certificates(away), timeout=timeout
    )


def body_of(answer: httpx2.Response, most_bytes: int, deadline: float) -> bytes | None:
    """The body of a streamed answer; None of one that is longer, or not over at a `deadline` of
    `time.monotonic()`: a timeout is of one read, and an answer may come byte by byte."""
    body = bytearray()
    for piece in answer.iter_bytes():
        body += piece
        if len(body) > most_bytes or time.monotonic() > deadline:
            return None
    return bytes(body)


@functools.cache
def _certificates(trust_env: bool) -> ssl.SSLContext:
    """Whom clients trust; read once, for it takes 20 ms of processor time."""
    return httpx2.create_ssl_context(trust_env=trust_env)


def is_loopback(host: str) -> bool:
    """Whether a name or address, without brackets or port, leads back to this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in _NAMES
