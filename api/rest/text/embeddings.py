"""`/v1/embeddings`."""

import asyncio
import base64
import threading
import time
from typing import Any

import torch
from fastapi import Request, Response
from fastapi.responses import JSONResponse

from weightledger.api.rest.declared import Declared
from weightledger.api.rest.disconnects import ClientGone, unless_gone
from weightledger.api.rest.documentation import answers, json_body
from weightledger.api.rest.inferred import Inferred, inferring
from weightledger.api.rest.model_selection import Inferring, Origin, ServedModel, resolve
from weightledger.api.rest.outputs import outcome_of
from weightledger.api.rest.requests import body, request_key
from weightledger.api.rest.text import schemas
from weightledger.api.rest.text.answers import EmbeddingsReply
from weightledger.api.rest.text.schemas import EmbeddingsBody
from weightledger.api.rest.workers import Workers
from weightledger.ledger.engines.text import Embeds
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring.samples import Measuring

MAX_TEXTS = 2048

# Texts that go through the model together, in the order sent.
BATCH = 32

_CLIENT_GONE = 499


def router(manager: Inferring, embeds: Embeds, workers: Workers) -> Declared:
    """The route of a model that embeds text."""
    routes = Declared(prefix="/v1", tags=["inference"])

    @routes.post(
        "/embeddings",
        responses=answers(EmbeddingsReply),
        openapi_extra=json_body(EmbeddingsBody, {"input": "a text"}, scope="read"),
    )
    async def embeddings(request: Request) -> Response:
        """One vector for each text, all from the same state."""
        sent = await body(request, schemas.EMBEDDINGS)
        served = resolve(manager, sent.model)
        _check(sent, embeds)
        cancelled = threading.Event()
        measuring = Measuring(request_key(request) or sent.user, time.perf_counter())
        inferred = inferring(request, "embeddings", sent.model, served.name)
        future = workers.submit(
            lambda: _embed(served, embeds, sent, cancelled, measuring, inferred)
        )

        def cancel() -> None:
            cancelled.set()
            future.cancel()

        try:
            return await unless_gone(request, asyncio.wrap_future(future), cancel)
        except ClientGone:
            return Response(status_code=_CLIENT_GONE)

    return routes


def _check(sent: EmbeddingsBody, embeds: Embeds) -> None:
    if sent.dimensions not in (None, embeds.dimensions):
        raise InvalidRequest(
            f"dimensions must be {embeds.dimensions}: this model's vectors cannot be shortened",
            param="dimensions",
        )
    if len(sent.input) > MAX_TEXTS:
        raise InvalidRequest(f"input may have at most {MAX_TEXTS} texts", param="input")


def _embed(
    served: ServedModel,
    embeds: Embeds,
    sent: EmbeddingsBody,
    cancelled: threading.Event,
    measuring: Measuring,
    inferred: Inferred,
) -> Response:
    texts = [
        embeds.tokens(text, schemas.named("input", sent.input, n))
        for n, text in enumerate(sent.input)
    ]
    vectors: list[torch.Tensor] = []
    with served.lease(measuring) as live:
        origin = Origin(live.seq, live.digest)
        for start in range(0, len(texts), BATCH):
            if cancelled.is_set():
                measuring.counts = False
                raise ClientGone
            vectors += embeds.embed(live.module, texts[start : start + BATCH])
        measuring.items = len(texts)
        measuring.outcome = outcome_of(vectors)
    tokens = inferred.input_tokens = sum(len(text) for text in texts)
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, sent.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    made = {"object": "list", "model": served.name, "data": data, "usage": usage}
    return JSONResponse(made, headers=origin.headers)


def _encoded(vector: torch.Tensor, form: str) -> Any:
    """Numbers, or the base64 of their little-endian float32 bytes."""
    if form == "float":
        return vector.tolist()
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode("ascii")
