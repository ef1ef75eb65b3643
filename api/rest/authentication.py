"""The door: request ids, API keys, and what a server without a key accepts.

Without a key the server listens on loopback only; then a web page in the user's browser is the
remaining stranger, so Host, Origin and the content type of what is sent are checked.
"""

import logging
import random
import re
import time
import uuid
from urllib.parse import urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weightledger.api.dashboard.sessions import (
    LOGIN,
    PARTS,
    STATIC,
    TOKEN_HEADER,
    Session,
    Sessions,
    is_own,
    place_of,
)
from weightledger.api.rest import origins
from weightledger.api.rest.errors import error_response, unexpected
from weightledger.api.rest.keyring import NO_KEY, Access, Keyring, Refusal
from weightledger.api.rest.sent_headers import SentHeaders

logger = logging.getLogger(__name__)

# Probes, and the pages that ask for the key themselves: none of them tells anything of the model
# but the name and digest of what is served.
_OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/docs", LOGIN})
_OPEN_FOLDERS = ("/docs/", STATIC)

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
# Neither JSON nor this can be sent by a form of a web page without asking first.
_CONTENT_TYPES = {"/v1/models/batch_update": "application/octet-stream"}

# What takes longer to arrive is from somebody whose key is looked at again.
_AT_ONCE_S = 1.0


def _new_id() -> str:
    """An id for a request: no secret, so that the system need not be asked for its randomness,
    which would let another thread run first."""
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDERS)


def is_page(path: str) -> bool:
    """Whether a path is one of the dashboard's, which people open in a browser; what scripts of
    its pages ask for is none."""
    return path == "/" or (path.startswith("/ui/") and not path.startswith(PARTS))


class _KeyEnded(Exception):
    """A key was revoked, or expired, while the body of its request was on the way."""


class Door:
    """ASGI middleware in front of everything.

    `scope["state"]` gets the request's id, its actor, the scope of its key (which the routes
    compare with what they want), whether its sender may be told more than strangers are, and
    `refusal_now`, by which replies that go on and on ask whether its sender may still be told.
    A body can take as long as its sender likes, so where one did, its key is asked for again before
    anybody acts on it.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring, sessions: Sessions) -> None:
        self.app = app
        self._keyring = keyring
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = SentHeaders.of(scope)
        sent_id = headers.first(b"x-request-id") or ""
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else _new_id()
        place = place_of(scope)
        session = None if b"authorization" in headers else self._sessions.find(place)
        token = session.key if session else _bearer(headers)
        judged = await self._keyring.admit(token)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["trusted"] = isinstance(judged, Access)
        if isinstance(judged, Access):
            state["actor"], state["scope"] = judged.actor, judged.scope

        def refusal_now() -> Refusal | None:
            ended = session is not None and self._sessions.find(place) is None
            return NO_KEY if ended else self._keyring.refusal(token)

        state["refusal_now"] = refusal_now

        admitted_at = time.monotonic()
        ended: Refusal | None = None

        async def receive_admitted() -> Message:
            nonlocal ended
            message = await receive()
            if (
                message["type"] == "http.request"
                and not message.get("more_body", False)
                and time.monotonic() - admitted_at > _AT_ONCE_S
                and isinstance(judged, Access)
            ):
                ended = refusal_now()
                if ended is not None:
                    raise _KeyEnded
            return message

        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if ended is not None and not started:
                return  # whoever read the body has another word for it
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        refusal = self._refusal(scope["path"], scope["method"], headers, judged)
        if refusal is None and session is not None:
            refusal = _foreign(scope["method"], headers, session)
        if refusal is not None:
            await refusal(scope, receive, send_with_id)
            return
        try:
            await self.app(scope, receive_admitted, send_with_id)
        except _KeyEnded:
            pass
        except ClientDisconnect:
            logger.info("%s %s: the client hung up", scope["method"], scope["path"])
        except Exception as error:
            if started:
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await unexpected(error)(scope, receive, send_with_id)
        if ended is not None and not started:
            late, ended = ended, None
            await _refused(late)(scope, receive, send_with_id)

    def _refusal(
        self, path: str, method: str, headers: SentHeaders, judged: Access | Refusal
    ) -> ASGIApp | None:
        if isinstance(judged, Refusal) and not is_open(path):
            if judged.status == 401 and method in _SAFE and is_page(path):
                return _to_login
            return _refused(judged)
        open_to_all = not self._keyring.asks
        if open_to_all:
            foreign = origins.refusal(headers.all(b"host"), headers.all(b"origin"))
            if foreign is not None:
                return error_response(403, foreign)
        encoding = (headers.first(b"content-encoding") or "").strip().lower()
        if encoding not in ("", "identity"):
            return error_response(
                415,
                f"Content-Encoding {encoding!r} is not taken: send the body as it is",
                param="Content-Encoding",
                headers={"accept-encoding": "identity"},
            )
        if open_to_all and method == "POST" and _has_body(headers):
            sent_type = headers.first(b"content-type") or ""
            content_type = sent_type.partition(";")[0].strip().lower()
            expected = _CONTENT_TYPES.get(path, "application/json")
            if content_type != expected:
                return error_response(
                    400,
                    f"expected Content-Type {expected}, got {content_type!r}",
                    param="Content-Type",
                )
        return None


def _foreign(method: str, headers: SentHeaders, session: Session) -> ASGIApp | None:
    """The reply to a request that a browser sends with our cookie and none of our pages made."""
    token, origin = headers.first(TOKEN_HEADER.encode()) or "", headers.first(b"origin")
    if method in _SAFE or is_own(token, session, origin, headers.first(b"host") or ""):
        return None
    return error_response(
        403, f"a session's writes carry {TOKEN_HEADER} and come from its own site"
    )


async def _to_login(scope: Scope, receive: Receive, send: Send) -> None:
    asked = scope["path"] + ("?" + query if (query := scope["query_string"].decode()) else "")
    login = str(scope.get("root_path", "")).rstrip("/") + LOGIN
    reply = RedirectResponse(f"{login}?{urlencode({'next': asked})}", status_code=303)
    await reply(scope, receive, send)


def _bearer(headers: SentHeaders) -> str | None:
    """The token of a request; None without one, or with more than one."""
    sent = headers.all(b"authorization")
    scheme, _, token = sent[0].partition(" ") if len(sent) == 1 else ("", "", "")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _refused(refusal: Refusal) -> ASGIApp:
    """The reply to a key that lets nobody in (RFC 6750, section 3)."""
    headers: dict[str, str] = {}
    if refusal.status == 401:
        unknown = "" if refusal is NO_KEY else ' error="invalid_token"'
        headers["www-authenticate"] = f"Bearer{unknown}"
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(refusal.retry_after_s)
    return error_response(refusal.status, refusal.message, headers=headers)


def _has_body(headers: SentHeaders) -> bool:
    length = headers.first(b"content-length")
    return b"transfer-encoding" in headers or (length is not None and length.strip() != "0")
