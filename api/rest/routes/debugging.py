"""States again, as they were or without some events."""

import tempfile
from pathlib import Path
from typing import Any

from fastapi import Depends, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

import weightledger.rules  # noqa: F401  which says how learning is worked out again
from weightledger import DynamicModelManager
from weightledger.api.rest import question_bodies, schemas
from weightledger.api.rest.answers.debugging import ReplayReply
from weightledger.api.rest.answers.writes import UpdateReply
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import BODY_REFUSALS, answers, json_body
from weightledger.api.rest.requests import body, caller, require_writes
from weightledger.api.rest.scopes import needs
from weightledger.ledger.debug import replaying
from weightledger.ledger.debug.whatif.adopting import adopt_command
from weightledger.ledger.errors import StorageError

_FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_REPLAY = {"to": "head", "without": ["update_1"], "mode": "causal"}


def router(manager: DynamicModelManager) -> Declared:
    """`POST /v1/models/replay` and `/adopt_what_if`."""
    routes = Declared(prefix="/v1/models", tags=["debugging"])
    history = manager.log.history

    @routes.post(
        "/replay",
        responses={**answers(ReplayReply, also=_FILE), **BODY_REFUSALS},
        openapi_extra={**json_body(question_bodies.ReplayBody, _REPLAY), **needs("read")},
    )
    async def replay(request: Request) -> Response:
        """Which state a position is, or what it would be without some events.

        As JSON, or with `format` safetensors its weights. Mode mechanical takes the bit differences
        of the events out, causal works every later update out again; 422 where that cannot be told.
        """
        sent = await body(request, question_bodies.REPLAY)
        asked = replaying.StateRequest(sent.to, sent.without, sent.mode, sent.only_after)
        if sent.format == "safetensors":
            return await run_in_threadpool(file_of, asked)
        state, found = await run_in_threadpool(replaying.replayed, history, asked)
        facts = await run_in_threadpool(replaying.described, state, found)
        return JSONResponse({**facts, "object": "replay" if found is None else "what_if"})

    def file_of(asked: replaying.StateRequest) -> Response:
        try:
            folder = tempfile.TemporaryDirectory(dir=manager.config.backup_dir)
        except OSError as error:
            raise StorageError(f"cannot write the weights: {error}") from error
        file = Path(folder.name) / "weights.safetensors"
        try:
            facts = replaying.save(history, asked, file)
        except BaseException:
            folder.cleanup()
            raise
        headers = {
            "x-weights-model": facts["model"].encode("unicode_escape").decode(),
            "x-weights-seq": str(facts["seq"]),
            "x-weights-version": facts["version"],
            "x-weights-digest": facts["digest"],
        }
        if "what_if" in facts:
            headers["x-weights-what-if"] = facts["what_if"].encode("unicode_escape").decode()
        return FileResponse(
            file,
            media_type="application/octet-stream",
            headers=headers,
            background=BackgroundTask(folder.cleanup),
        )

    @routes.post(
        "/adopt_what_if",
        dependencies=[Depends(require_writes)],
        responses=answers(UpdateReply, write=True),
        openapi_extra=json_body(question_bodies.AdoptBody, _REPLAY, write=True),
    )
    async def adopt(request: Request, response: Response) -> dict[str, Any]:
        """Make a what-if the model's state: an ordinary update, judged like any other."""
        sent = await body(request, question_bodies.ADOPT)
        who = caller(request, manager.log.live.head)
        command = adopt_command(
            history,
            sent.without,
            to=sent.to,
            mode=sent.mode,
            only_after=sent.only_after,
            caller=who,
        )
        event = await manager.execute(command)
        response.headers["etag"] = f'"{event.state_seq}"'
        done = f"Successfully adopted {sent.to} without {', '.join(sent.without)}"
        return schemas.update_reply(manager.update_result(event), done)

    return routes
