"""Reading what was written before: a request waits for a state, or a write for its replicas."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Header
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weightledger import DynamicModelManager
from weightledger.ledger.errors import InvalidRequest, NotShownYet, StorageError
from weightledger.ledger.fleet.reached import Wanted, reached

MOST_WAIT_S = 5.0
"""How long a request waits for a state, and a write for replicas."""

_LOOK_S = 0.01
_LOOK_AT_REPLICAS_S = 0.05
_SEQ = re.compile(r"[0-9]{1,15}")
_ETAG = re.compile(r'"([0-9]{1,15})"')


def at_least(manager: DynamicModelManager) -> Callable[..., Awaitable[None]]:
    """What goes before inference: `X-Weights-Min-Seq` waits until such a state is shown here.

    NotShownYet where it is not in time; then another replica may show it.
    """

    async def wait(
        x_weights_min_seq: Annotated[
            str | None,
            Header(
                description="The state that a write answered with, or a later one, has to be"
                " shown: the request waits for it a moment, and is answered 409 if it is not.",
                json_schema_extra={"pattern": "^[0-9]{1,15}$"},
            ),
        ] = None,
    ) -> None:
        if x_weights_min_seq is None:
            return
        if not _SEQ.fullmatch(x_weights_min_seq.strip()):
            raise InvalidRequest(
                f"X-Weights-Min-Seq must be the seq of a state, got {x_weights_min_seq[:20]!r}",
                param="X-Weights-Min-Seq",
            )
        wanted = int(x_weights_min_seq)
        deadline = time.monotonic() + MOST_WAIT_S
        while (shown := manager.log.live.head.seq) < wanted:
            if time.monotonic() > deadline:
                raise NotShownYet(f"what is shown here is seq {shown}, not {wanted} yet")
            await asyncio.sleep(_LOOK_S)

    return wait


class Replicated:
    """Holds the reply to a write back until enough replicas show it, or a moment has passed.

    The write is durable either way: the headers `X-Weights-Replicas` (how many show it) and
    `X-Weights-Wait` ("reached" or "timeout") say what came of waiting.
    """

    def __init__(self, app: ASGIApp, manager: DynamicModelManager) -> None:
        self._app = app
        self._manager = manager

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or b"wait=" not in scope["query_string"]:
            await self._app(scope, receive, send)
            return

        async def held(message: Message) -> None:
            wait = scope.get("state", {}).get("wait", "committed")
            if message["type"] == "http.response.start" and wait != "committed":
                etag = _ETAG.fullmatch(Headers(raw=message["headers"]).get("etag", ""))
                if message["status"] == 200 and etag is not None:
                    await self._wait(int(etag[1]), wait, MutableHeaders(raw=message["headers"]))
            await send(message)

        await self._app(scope, receive, held)

    async def _wait(self, seq: int, wait: str, headers: MutableHeaders) -> None:
        wanted = Wanted.parse(wait)
        history = self._manager.log.history
        deadline = time.monotonic() + MOST_WAIT_S
        while True:
            try:
                showing, enough = await asyncio.to_thread(reached, history, seq, wanted)
            except StorageError:
                showing, enough = 0, False
            if enough or time.monotonic() > deadline:
                break
            await asyncio.sleep(_LOOK_AT_REPLICAS_S)
        headers["x-weights-replicas"] = str(showing)
        headers["x-weights-wait"] = "reached" if enough else "timeout"
