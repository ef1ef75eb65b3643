"""The search for the event that broke a model, for whoever judges: a client, or this server."""

import asyncio
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from weightledger import DynamicModelManager
from weightledger.api.evaluating import evaluating_served
from weightledger.api.rest.answers.debugging import BisectReply
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import BODY_REFUSALS, answers, json_body
from weightledger.api.rest.question_bodies import BISECT, BisectBody
from weightledger.api.rest.requests import body
from weightledger.api.rest.scopes import needs
from weightledger.ledger.debug.bisect import reporting, session
from weightledger.ledger.debug.bisect.bisection import Bisection, Rules
from weightledger.ledger.debug.drawn import search_picture
from weightledger.ledger.errors import InvalidRequest

_MOST_S = 30.0  # for which one request has states judged
_EXAMPLE = {"good": "v0", "bad": "head", "verdicts": [{"position": "seq:1", "verdict": "good"}]}
_PICTURE = {"image/svg+xml": {"schema": {"type": "string"}}}
# What a search that is sent back says itself.
_OF_SEARCH = BisectBody.model_fields.keys() - {"search", "verdicts", "judge", "probes", "format"}


def router(manager: DynamicModelManager, copies: asyncio.Lock) -> Declared:
    """`POST /v1/models/bisect`; `copies` is held while a copy of the model is at work."""
    routes = Declared(prefix="/v1/models", tags=["debugging"])
    history = manager.log.history

    @routes.post(
        "/bisect",
        responses={**answers(BisectReply, also=_PICTURE), **BODY_REFUSALS},
        openapi_extra={**json_body(BisectBody, _EXAMPLE), **needs("read")},
    )
    async def bisect(request: Request) -> Response:
        """Where a search for the event that broke the model has come to.

        Nothing is kept here: a reply's `search` is all of it, and goes on where it is sent back,
        with further verdicts. It says which states are to be judged (`probes`), or which event is
        to blame, what it changed and what mends it. With `judge` the server's own evaluator judges
        by `metric` and `drop`.
        """
        sent = await body(request, BISECT)
        if not sent.judge:
            return await run_in_threadpool(answer, sent)
        async with copies:
            return await run_in_threadpool(answer, sent)

    def answer(sent: BisectBody) -> Response:
        going = _search(sent)
        told = [(one.verdict, one.position) for one in sent.verdicts]
        if told or going is None:
            going = going or session.start(history, sent.good, sent.bad, _rules(sent))
            going = session.tell(history, going, *told)
        cost: dict[str, Any] = {}
        if sent.judge:
            if going.rules.metric is None:
                raise InvalidRequest(
                    "say by which metric the evaluator's scores decide, such as accuracy, and with "
                    "drop how much worse is bad",
                    param="metric",
                )
            judge = evaluating_served(manager)
            ran = session.judge_all(history, going, judge, most=sent.judge, most_s=_MOST_S)
            going = ran.bisection
            cost = {"judging_s": round(ran.judging_s, 3), "path_bytes": ran.path_bytes}
        if sent.format == "svg":
            picture = search_picture(reporting.chances(history, going))
            return Response(picture, media_type="image/svg+xml")
        facts = reporting.report(history, going)
        begun = going.good is not None and going.bad is not None
        facts["probes"] = session.Here(history).probes(going, sent.probes) if begun else []
        return JSONResponse(
            {"object": "bisection", **facts, **cost, "search": going.to_json()},
        )

    return routes


def _search(sent: BisectBody) -> Bisection | None:
    """The search that is sent back, if one is; InvalidRequest for what contradicts it."""
    if sent.search is None:
        return None
    beside = sorted(_OF_SEARCH & sent.model_fields_set)
    if beside:
        raise InvalidRequest(
            f"{beside[0]} is part of a search from its beginning: leave it out beside search",
            param=beside[0],
        )
    return Bisection.from_json(sent.search.model_dump())


def _rules(sent: BisectBody) -> Rules:
    return Rules(
        noisy=sent.noisy is not None or sent.learn_rate,
        rate=sent.noisy,
        confidence=sent.confidence,
        metric=sent.metric,
        drop=sent.drop,
        lower_is_better=sent.lower_is_better,
    )
