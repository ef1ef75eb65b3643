"""`/v1/completions` and `/v1/chat/completions`, whole or streamed."""

import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from weightledger.api.rest import replies
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.disconnects import ClientGone, unless_gone
from weightledger.api.rest.documentation import answers, json_body
from weightledger.api.rest.errors import openai_error
from weightledger.api.rest.inferred import Inferred, Operation, inferring
from weightledger.api.rest.model_selection import Inferring, resolve
from weightledger.api.rest.replies import Envelope, Form, usage
from weightledger.api.rest.requests import body, request_key
from weightledger.api.rest.text import schemas
from weightledger.api.rest.text.answers import STREAMED, ChatReply, CompletionReply
from weightledger.api.rest.text.generation import Ask, ChoiceText, Ended, Generation, Started
from weightledger.api.rest.text.schemas import ChatBody, CompletionBody
from weightledger.api.rest.workers import Workers
from weightledger.ledger.engines.text import Generates, Sampling
from weightledger.ledger.errors import LedgerError

logger = logging.getLogger(__name__)

# OpenAI's default for completions; chat goes on until it ends by itself or the context is full.
_COMPLETION_TOKENS = 16

_CLIENT_GONE = 499

_CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def router(manager: Inferring, generates: Generates, workers: Workers) -> Declared:
    """The routes of a model that generates text."""
    routes = Declared(prefix="/v1", tags=["inference"])

    @routes.post(
        "/completions",
        responses=answers(CompletionReply, also=STREAMED),
        openapi_extra=json_body(CompletionBody, {"prompt": "Once", "max_tokens": 4}, scope="read"),
    )
    async def completions(request: Request) -> Response:
        """Continue each prompt."""
        sent = await body(request, schemas.COMPLETION)
        ask = Ask(
            lambda: [
                generates.tokens(prompt, schemas.named("prompt", sent.prompt, n))
                for n, prompt in enumerate(sent.prompt)
            ],
            _sampling(sent),
            sent.max_tokens,
            _COMPLETION_TOKENS,
            "prompt",
        )
        return await reply(request, sent, ask, replies.TEXT)

    @routes.post(
        "/chat/completions",
        responses=answers(ChatReply, also=STREAMED),
        openapi_extra=json_body(ChatBody, _CHAT, scope="read"),
    )
    async def chat_completions(request: Request) -> Response:
        """The next message of a conversation."""
        sent = await body(request, schemas.CHAT)
        messages = [_message(message) for message in sent.messages]
        ask = Ask(
            lambda: [generates.chat_tokens(messages)],
            _sampling(sent),
            sent.max_completion_tokens or sent.max_tokens,
            None,
            "messages",
        )
        return await reply(request, sent, ask, replies.CHAT)

    async def reply(
        request: Request, sent: CompletionBody | ChatBody, ask: Ask, form: Form
    ) -> Response:
        served = resolve(manager, sent.model)
        key = request_key(request) or sent.user
        operation: Operation = "chat" if form is replies.CHAT else "text_completion"
        inferred = inferring(request, operation, sent.model, served.name)
        generation = Generation(workers, generates, served, ask, key)
        try:
            started = await unless_gone(request, generation.started(), generation.cancel)
            inferred.input_tokens = started.prompt_tokens
            shared = Envelope.new(form, served.name, started.origin.fingerprint)
            if sent.stream:
                counts = sent.stream_options is not None and sent.stream_options.include_usage
                return _Stream(generation, started, shared, form, inferred, include_usage=counts)
            work = _whole(generation, started, shared, form, inferred)
            return await unless_gone(request, work, generation.cancel)
        except ClientGone:
            return Response(status_code=_CLIENT_GONE)

    return routes


async def _whole(
    generation: Generation, started: Started, shared: Envelope, form: Form, inferred: Inferred
) -> Response:
    texts: dict[int, str] = {}
    choices: list[dict[str, Any]] = []
    tokens = 0
    async for said in generation:
        if isinstance(said, ChoiceText):
            texts[said.index] = texts.get(said.index, "") + said.text
        else:
            text = texts.get(said.index, "")
            choices.append(form.choice(said.index, text, said.finished.reason))
            tokens += said.finished.tokens
    inferred.output_tokens = tokens
    made = shared.around(form.object, choices, usage=usage(started.prompt_tokens, tokens))
    return JSONResponse(made, headers=started.origin.headers)


class _Stream(EventSourceResponse):
    """The events of a generation, which ends when the response does, however that happens."""

    def __init__(
        self,
        generation: Generation,
        started: Started,
        shared: Envelope,
        form: Form,
        inferred: Inferred,
        *,
        include_usage: bool,
    ) -> None:
        events = _events(generation, started, shared, form, inferred, include_usage=include_usage)
        super().__init__(events, headers={**started.origin.headers, "cache-control": "no-cache"})
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()


async def _events(
    generation: Generation,
    started: Started,
    shared: Envelope,
    form: Form,
    inferred: Inferred,
    *,
    include_usage: bool,
) -> AsyncIterator[bytes]:
    # With usage asked for, each chunk has the field, and only the last one a value.
    none = {"usage": None} if include_usage else {}
    opened: set[int] = set()
    tokens = 0
    try:
        async for said in generation:
            opening = form.opening(said.index)
            if opening is not None and said.index not in opened:
                opened.add(said.index)
                yield _event(shared.around(form.chunk_object, [opening], **none))
            yield _event(shared.around(form.chunk_object, [form.part(said)], **none))
            if isinstance(said, Ended):
                tokens += said.finished.tokens
                inferred.output_tokens = tokens
    except LedgerError as error:
        logger.error("a stream ended early: %s", error)
        yield _event(openai_error(error)[1])
        return
    except Exception as error:
        # The status is sent already, so this is the only way to tell the client.
        logger.exception("a stream ended early")
        message = f"internal error: {type(error).__name__}"
        facts = {"message": message, "type": "server_error", "param": None, "code": "internal"}
        yield _event({"error": facts})
        return
    if include_usage:
        used = usage(started.prompt_tokens, tokens)
        yield _event(shared.around(form.chunk_object, [], usage=used))
    yield format_sse_event(data_str="[DONE]")


def _event(data: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=to_json(data).decode())


def _sampling(sent: CompletionBody | ChatBody) -> Sampling:
    stop = [sent.stop] if isinstance(sent.stop, str) else sent.stop or []
    return Sampling(
        max_tokens=1,
        temperature=1.0 if sent.temperature is None else sent.temperature,
        top_p=1.0 if sent.top_p is None else sent.top_p,
        seed=sent.seed,
        stop=tuple(stop),
    )


def _message(message: schemas.Message) -> dict[str, str]:
    named = {} if message.name is None else {"name": message.name}
    return {"role": message.role, "content": message.text, **named}
