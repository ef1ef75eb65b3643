"""Browsers that were let in: an API key once, then a cookie that no script can read.

The cookie (HttpOnly, SameSite=Strict) names a session of this server; the key stays here, and is
judged anew at every request, so a key that is revoked ends its sessions. What a session sends to
change something has to carry its token and come from this very site.
"""

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.types import Scope

from weightledger.api.rest.sent_headers import SentHeaders

LOGIN = "/ui/login"
STATIC = "/ui/static/"  # files that need no key
PARTS = "/ui/part/"  # what scripts of pages ask for

_COOKIE = "weightledger_session"
TOKEN_HEADER = "x-csrf-token"
LASTS_S = 12 * 3600

_MOST = 1000  # sessions; the oldest goes


@dataclass(frozen=True, slots=True)
class Session:
    """One browser: its API key, the token its pages carry, and when it ends by the clock."""

    key: str
    token: str
    ends: float


@dataclass(frozen=True, slots=True)
class BrowserPlace:
    """Where a browser sees a server, and the Cookie header that it sent there.

    Browsers keep one jar for all ports of a host and for a path and those below it, so the name
    of the cookie says which server it is of.
    """

    host: str
    base: str
    cookies: str = ""

    @property
    def cookie(self) -> str:
        """The name of the cookie."""
        whole = f"{self.host.lower()}{self.base}".encode()
        return f"{_COOKIE}_{sha256(whole).hexdigest()[:8]}"


def place_of(scope: Scope) -> BrowserPlace:
    """Where a request was sent to."""
    headers = SentHeaders.of(scope)
    base = str(scope.get("root_path", "")).rstrip("/")
    return BrowserPlace(headers.first(b"host") or "", base, headers.first(b"cookie") or "")


class Sessions:
    """The sessions of one server; they end with it. Used on the event loop alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of: dict[str, Session] = {}

    def open(self, key: str) -> str:
        """A session for who has shown this key; gives the cookie's value."""
        while len(self._of) >= _MOST:
            del self._of[next(iter(self._of))]
        name = secrets.token_urlsafe(32)
        self._of[name] = Session(key, secrets.token_urlsafe(32), self._clock() + LASTS_S)
        return name

    def close(self, place: BrowserPlace) -> None:
        """End the session of a request, if it has one."""
        self._of.pop(_named(place), None)

    def find(self, place: BrowserPlace) -> Session | None:
        """The session of a request, unless it has ended."""
        name = _named(place)
        session = self._of.get(name)
        if session is not None and session.ends <= self._clock():
            del self._of[name]
            return None
        return session


def cookie(value: str, place: BrowserPlace, *, secure: bool) -> str:
    """The Set-Cookie header of a session; an empty value ends it."""
    lasts = LASTS_S if value else 0
    path = place.base or "/"
    kept = f"{place.cookie}={value}; Path={path}; Max-Age={lasts}; HttpOnly; SameSite=Strict"
    return f"{kept}; Secure" if secure else kept


def is_own(token: str, session: Session, origin: str | None, host: str) -> bool:
    """Whether a request that changes something was sent by a page of this site."""
    return (
        hmac.compare_digest(token.encode(), session.token.encode())
        and origin is not None
        and urlsplit(origin).netloc.lower() == host.lower()
    )


def _named(place: BrowserPlace) -> str:
    if not place.cookies:  # programs have none, and send most requests
        return ""
    try:
        sent = SimpleCookie(place.cookies).get(place.cookie)
    except CookieError:
        return ""
    return sent.value if sent else ""
