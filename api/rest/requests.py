"""What every write request carries beside its body: who asks, and on what condition."""

import asyncio
import re
from typing import TypeVar

from fastapi import Request
from pydantic import TypeAdapter

from weightledger.api.rest.schemas import parse
from weightledger.ledger.errors import InvalidRequest, OperationDisabled
from weightledger.ledger.writing.caller import Caller

T = TypeVar("T")

MAX_KEY = 255

# Above this a body is parsed on a thread, so that the event loop goes on answering.
_INLINE_PARSE_BYTES = 64 * 1024

_ETAG = re.compile(r'"([0-9]{1,15})"|([0-9]{1,15})')


async def body(request: Request, adapter: TypeAdapter[T]) -> T:
    """The validated JSON body of a request."""
    raw = await request.body()
    if len(raw) > _INLINE_PARSE_BYTES:
        return await asyncio.to_thread(parse, adapter, raw)
    return parse(adapter, raw)


def caller(request: Request) -> Caller:
    """The caller of a write, from its headers; InvalidRequest for malformed ones."""
    return Caller(
        actor=getattr(request.state, "actor", None),
        request_id=getattr(request.state, "request_id", None),
        idempotency_key=_idempotency_key(request.headers.get("idempotency-key")),
        expected_seq=_expected_seq(request.headers.get("if-match")),
    )


async def require_writes(request: Request) -> None:
    """Raise OperationDisabled when the operator has switched runtime updates off.

    A coroutine, since a plain function would be called on a thread for every write.
    """
    if not getattr(request.app.state, "writes_enabled", True):
        raise OperationDisabled(
            "runtime updates are switched off; start the server without "
            "WEIGHTLEDGER_ALLOW_RUNTIME_UPDATING=0"
        )


def _idempotency_key(value: str | None) -> str | None:
    if value is None:
        return None
    key = value.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not 1 <= len(key) <= MAX_KEY:
        raise InvalidRequest(
            f"Idempotency-Key must have 1 to {MAX_KEY} characters, got {len(key)}",
            param="Idempotency-Key",
        )
    return key


def _expected_seq(value: str | None) -> int | None:
    if value is None or value.strip() == "*":
        return None
    match = _ETAG.fullmatch(value.strip())
    if match is None:
        raise InvalidRequest(
            f'If-Match must be the ETag of a reply, such as "12"; got {value!r}', param="If-Match"
        )
    return int(match[1] or match[2])
