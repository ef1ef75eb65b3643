"""Old replies computed again, beside what is live."""

import asyncio
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

import weightledger.rules  # noqa: F401  which says how learning is worked out again
from weightledger import DynamicModelManager
from weightledger.api.reproducing.again import reproduce
from weightledger.api.rest.answers.debugging import ReproductionReply
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import BODY_REFUSALS, answers, json_body
from weightledger.api.rest.question_bodies import REPRODUCE, ReproduceBody
from weightledger.api.rest.requests import body
from weightledger.api.rest.scopes import needs
from weightledger.ledger.engines import Separable
from weightledger.ledger.errors import InvalidRequest

_EXAMPLE = {
    "route": "/invocations",
    "request": {"inputs": [[0.0] * 64]},
    "reply": {"predictions": [[0.0] * 10]},
    "seq": 0,
}


def router(manager: DynamicModelManager, copies: asyncio.Lock) -> Declared:
    """`POST /v1/models/reproduce`; `copies` is held while a copy of the model is at work."""
    routes = Declared(prefix="/v1/models", tags=["debugging"])

    @routes.post(
        "/reproduce",
        responses={**answers(ReproductionReply), **BODY_REFUSALS},
        openapi_extra={**json_body(ReproduceBody, _EXAMPLE), **needs("read")},
    )
    async def reproduce_reply(request: Request) -> Response:
        """Answer an old request again on the state that its reply names, and compare both replies.

        A copy of the served model shows the rebuilt state and answers; the live one goes on as it
        is. `seq` or `digest` will do, the reply's `X-Weights-Seq` and `X-Weights-Digest`.
        """
        sent = await body(request, REPRODUCE)
        async with copies:
            return JSONResponse(await run_in_threadpool(again, sent))

    def again(sent: ReproduceBody) -> dict[str, Any]:
        engine = manager.engine
        if not isinstance(engine, Separable):
            raise InvalidRequest(
                "the model is in another process, which computes in another order: its replies "
                "cannot be reproduced",
                param="route",
            )
        return reproduce(
            manager.log.history,
            engine.apart(),
            sent.route,
            sent.request,
            sent.reply,
            seq=sent.seq,
            digest=sent.digest,
        ).to_json()

    return routes
