"""The OpenAI routes that the engine can serve, and clear words for those that it cannot."""

from fastapi import Response

from weightledger.api.rest.declared import Declared
from weightledger.api.rest.model_selection import Inferring
from weightledger.api.rest.scopes import needs
from weightledger.api.rest.text import completions, embeddings
from weightledger.api.rest.workers import Workers
from weightledger.ledger.engines import text
from weightledger.ledger.errors import NotFound


def router(manager: Inferring, workers: Workers) -> Declared:
    """`/v1/embeddings`, `/v1/completions` and `/v1/chat/completions`."""
    routes = Declared()
    embeds, generates = text.embeds(manager.engine), text.generates(manager.engine)
    if embeds is not None:
        routes.include(embeddings.router(manager, embeds, workers))
    else:
        _absent(routes, manager, "/v1/embeddings", "a text encoder")
    if generates is not None:
        routes.include(completions.router(manager, generates, workers))
    else:
        for path in ("/v1/completions", "/v1/chat/completions"):
            _absent(routes, manager, path, "a causal language model")
    return routes


def _absent(routes: Declared, manager: Inferring, path: str, needed: str) -> None:
    @routes.post(path, include_in_schema=False, openapi_extra=needs("read"))
    async def refuse() -> Response:
        raise NotFound(
            f"no {path} here: the served model {manager.model_name!r} is not {needed}; start the "
            "server with --model and a Hugging Face folder that holds one",
            param="model",
        )
