"""Redaction over HTTP: an admin's, and under the two-person rule two people's."""

import asyncio
from typing import Any

from fastapi import Depends, Request, Response

from weightledger import DynamicModelManager
from weightledger.api.items import redaction_facts
from weightledger.api.rest import schemas
from weightledger.api.rest.answers.events import Redaction
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import answers, json_body
from weightledger.api.rest.requests import body, caller_because, require_writes
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.redactions import MOST, seqs_of_actor
from weightledger.ledger.writing import commands


def router(manager: DynamicModelManager) -> Declared:
    """`POST /v1/models/redact`."""
    routes = Declared(prefix="/v1/models", tags=["audit"])
    history = manager.log.history

    @routes.post(
        "/redact",
        dependencies=[Depends(require_writes)],
        responses=answers(Redaction, write=True),
        openapi_extra=json_body(
            schemas.RedactBody,
            {"of": "Ana Zimmermann", "reason": "erasure request 118", "dry_run": True},
            write=True,
            scope="admin",
        ),
    )
    async def redact(request: Request, response: Response) -> dict[str, Any]:
        """Take away what was written beside events: actor, reason and metadata.

        The log holds salted digests of them, so every hash and proof stays. An event says what
        went, who took it away and why. On PostgreSQL the server has to own the tables.
        """
        asked = await body(request, schemas.REDACT)
        who = caller_because(request, manager.log.live.head, asked.reason)
        seqs = await asyncio.to_thread(_seqs, history, asked)
        done = []
        if not asked.dry_run:
            event = await manager.execute(commands.Redact(seqs, tuple(asked.fields), who))
            response.headers["etag"] = f'"{event.state_seq}"'
            done.append(event)
        facts = await asyncio.to_thread(redaction_facts, history, seqs, asked.fields, done)
        return {"object": "redaction", **facts}

    return routes


def _seqs(history: History, asked: schemas.RedactBody) -> tuple[int, ...]:
    """The events that are meant; InvalidRequest for none named and for too many."""
    if not asked.events and asked.of is None:
        raise InvalidRequest("say which events, or whose with `of`", param="events")
    seqs = {history.event(name).seq for name in asked.events}
    if asked.of is not None:
        seqs.update(seqs_of_actor(history.store, asked.of))
    if len(seqs) > MOST:
        raise InvalidRequest(
            f"at most {MOST:,} events are redacted at a time, these are {len(seqs):,}: name some,"
            " or use `weightledger redact` where the database is",
            param="of",
        )
    return tuple(sorted(seqs))
