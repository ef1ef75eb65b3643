"""The door: request ids, the API key, and what a server without a key accepts.

Without a key the server listens on loopback only; then a web page in the user's browser is the
remaining stranger, so Host, Origin and the JSON content type are checked.
"""

import hashlib
import hmac
import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weightledger.api.rest.errors import error_response, unexpected

logger = logging.getLogger(__name__)

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
# Neither JSON nor this can be sent by a form of a web page without asking first.
_CONTENT_TYPES = {"/v1/models/batch_update": "application/octet-stream"}
_STATIC_KEY_NAME = "api-key"


class Door:
    """ASGI middleware in front of everything."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self.app = app
        self._key_digest = None if api_key is None else _digest(api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["actor"] = None if self._key_digest is None else _STATIC_KEY_NAME

        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        refusal = self._refusal(scope["path"], scope["method"], headers)
        if refusal is not None:
            await refusal(scope, receive, send_with_id)
            return
        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            if started:
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await unexpected(error)(scope, receive, send_with_id)

    def _refusal(self, path: str, method: str, headers: Headers) -> ASGIApp | None:
        if self._key_digest is not None:
            if path in OPEN_PATHS or self._authorized(headers):
                return None
            return error_response(
                401,
                "expected the header Authorization: Bearer <api key>",
                headers={"www-authenticate": "Bearer"},
            )
        host = _host(headers.get("host", ""))
        if host not in LOOPBACK:
            return error_response(
                403, f"Host {host!r} is not loopback; set an API key to serve other names"
            )
        origin = headers.get("origin")
        if origin is not None and _host(origin.partition("://")[2]) not in LOOPBACK:
            return error_response(
                403, f"Origin {origin!r} may not use this server; set an API key to allow it"
            )
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        expected = _CONTENT_TYPES.get(path, "application/json")
        if method == "POST" and content_type != expected:
            return error_response(400, f"expected Content-Type {expected}, got {content_type!r}")
        return None

    def _authorized(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        assert self._key_digest is not None
        return scheme.lower() == "bearer" and hmac.compare_digest(
            _digest(token.strip()), self._key_digest
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _host(netloc: str) -> str:
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0]
    return netloc.partition(":")[0].lower()
