"""What every write request carries beside its body: who asks, and on what condition."""

import asyncio
import re
from dataclasses import replace
from typing import Annotated, TypeVar
from urllib.parse import unquote

from fastapi import Query, Request
from pydantic import TypeAdapter

from weightledger.api.rest.schemas import MAX_TEXT, parse
from weightledger.api.rest.sent_headers import SentHeaders
from weightledger.api.rest.writer import WriterServer
from weightledger.ledger.access.keys import check_not_reserved
from weightledger.ledger.errors import InvalidRequest, OperationDisabled, PreconditionFailed
from weightledger.ledger.events import Event
from weightledger.ledger.writing.caller import Caller

T = TypeVar("T")

MAX_KEY = 255
WAITS = r"committed|quorum|all|[1-9][0-9]{0,3}"

# Above this a body is parsed on a thread, so that the event loop goes on answering.
_INLINE_PARSE_BYTES = 64 * 1024

# RFC 9110, section 8.8.3, and the bare seq that our own clients may send.
_TAG = re.compile(r'(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"|([0-9]{1,15})')
_SEQ = re.compile(r"[0-9]{1,15}")


async def body(request: Request, adapter: TypeAdapter[T]) -> T:
    """The validated JSON body of a request."""
    raw = await request.body()
    if len(raw) > _INLINE_PARSE_BYTES:
        return await asyncio.to_thread(parse, adapter, raw)
    return parse(adapter, raw)


async def require_no_body(request: Request) -> None:
    """InvalidRequest where something comes with a request that has no body, and would be lost; an
    empty object is nothing. Behind `require_writes`: a replica hands the body on."""
    if (await request.body()).strip() not in (b"", b"{}"):
        raise InvalidRequest("this route takes no body; why a write is made is said in X-Reason")


def caller(request: Request, head: Event) -> Caller:
    """The caller of a write, from its headers; InvalidRequest for malformed ones.

    `head` is the last event that is shown: it tells which of several tags of If-Match may match.
    """
    sent = SentHeaders.of(request.scope)
    return Caller(
        actor=_actor(sent, getattr(request.state, "actor", None)),
        reason=_text(sent, "X-Reason"),
        request_id=getattr(request.state, "request_id", None),
        idempotency_key=_idempotency_key(_sole(sent, "Idempotency-Key")),
        expected_seq=_expected_seq(sent.all(b"if-match"), head.state_seq),
    )


def caller_because(request: Request, head: Event, reason: str) -> Caller:
    """The caller of a write whose body says why; InvalidRequest where X-Reason says otherwise."""
    who = caller(request, head)
    if who.reason not in (None, reason):
        raise InvalidRequest("X-Reason says something else than the body", param="X-Reason")
    return replace(who, reason=reason)


def request_key(request: Request) -> str | None:
    """What `X-Request-Key` says this request belongs to, such as a conversation or a user.

    During a trial all requests of one key meet the same state.
    """
    return _text(SentHeaders.of(request.scope), "X-Request-Key")


def _actor(sent: SentHeaders, known: str | None) -> str | None:
    """Who asks: the API key's name, which is `known`, or without one who they say they are."""
    named = _text(sent, "X-Actor")
    if known is not None and named not in (None, known):
        raise InvalidRequest(
            f"with an API key the actor is the key's name, {known!r}; leave out X-Actor",
            param="X-Actor",
        )
    if known is None and named is not None:
        check_not_reserved(named, "X-Actor")
    return known or named


def _text(sent: SentHeaders, name: str) -> str | None:
    """A header with a text in it, in UTF-8, which is percent-encoded where it is not ASCII.

    Bare UTF-8, as curl sends what was typed, is taken too; servers see it as Latin-1.
    """
    value = _sole(sent, name)
    if value is None or not value.strip():
        return None
    try:
        text = unquote(value.strip().encode("latin-1").decode(), errors="strict")
    except UnicodeError:
        raise InvalidRequest(f"{name} must be percent-encoded UTF-8", param=name) from None
    if len(text) > MAX_TEXT:
        raise InvalidRequest(f"{name} may have {MAX_TEXT} characters, got {len(text)}", param=name)
    return text


async def require_writes(
    request: Request,
    wait: Annotated[
        str,
        Query(
            pattern=f"^({WAITS})$",
            description="What the reply waits for, a moment at most: committed, or that a quorum of"
            " the replicas, all of them or a number of them show it. X-Weights-Wait says what came"
            " of it; the write is durable either way.",
        ),
    ] = "committed",
) -> None:
    """Mark a request as a write; OperationDisabled when the operator has switched updates off, and
    on a replica, which names the writer or hands the request on to it.

    A coroutine, since a plain function would be called on a thread for every write.
    """
    request.state.write = True
    request.state.wait = wait
    await to_writer(request)
    if not getattr(request.app.state, "writes_enabled", True):
        raise OperationDisabled(
            "runtime updates are switched off; start the server without "
            "WEIGHTLEDGER_ALLOW_RUNTIME_UPDATING=0"
        )


async def to_writer(request: Request) -> None:
    """On a replica raise OperationDisabled, which names the writer, or have it answer."""
    writer: WriterServer | None = getattr(request.app.state, "writer", None)
    if writer is not None:
        await writer.refuse()


def _sole(sent: SentHeaders, name: str) -> str | None:
    """The value of a header; InvalidRequest where it came with several, as where a proxy adds its
    own to the client's: which of them is meant nobody can tell."""
    values = set(sent.all(name.lower().encode()))
    if len(values) > 1:
        raise InvalidRequest(f"{name}: expected once, got {len(values)} values", param=name)
    return values.pop() if values else None


def _idempotency_key(value: str | None) -> str | None:
    if value is None:
        return None
    key = value.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not 1 <= len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
        raise InvalidRequest(
            f"Idempotency-Key must have 1 to {MAX_KEY} characters of printable ASCII, got"
            f" {len(key)}: {key[:20]!r}",
            param="Idempotency-Key",
        )
    return key


def _expected_seq(values: list[str], head_seq: int) -> int | None:
    """The seq that has to be the last state change's, from the tags of If-Match.

    Of several tags any may match. One that names no seq is none of ours, and never does. A weak
    tag is what a proxy that compresses replies makes of ours: it names the same seq.
    """
    listed = ", ".join(values).strip()
    if not values or listed == "*":
        return None
    tags = [tag.strip() for tag in listed.split(",") if tag.strip()]
    matches = [_TAG.fullmatch(tag) for tag in tags]
    if not matches or None in matches:
        raise InvalidRequest(
            f'If-Match must be the ETag of a reply, such as "12", or several of them, or *; got'
            f" {listed!r}",
            param="If-Match",
        )
    named = [match[1] if match[1] is not None else match[2] for match in matches if match]
    seqs = {int(name) for name in named if _SEQ.fullmatch(name)}
    if not seqs:
        raise PreconditionFailed(
            f"If-Match has no tag of this ledger; the last state change is seq {head_seq}",
            head_seq=head_seq,
        )
    return head_seq if head_seq in seqs else max(seqs)
