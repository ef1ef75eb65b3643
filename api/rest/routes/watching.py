"""The log as it grows, as server-sent events."""

import re
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import Response

from weightledger.api.rest import queries
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import TEXT_READ_ERRORS
from weightledger.api.rest.streaming import EventStream
from weightledger.api.rest.tail import Tail
from weightledger.ledger.debug.follow import starting_after
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import Event

_HEADER = "Last-Event-ID"
_SEQ = re.compile(r"[0-9]{1,12}")

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events, each with its seq as `id` and, as `data`, what "
        "`GET /v1/models/updates/{id}` says of it",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
_LAST_EVENT_ID: dict[str, Any] = {
    "parameters": [
        {
            "name": _HEADER,
            "in": "header",
            "required": False,
            "description": "The `id` of the last event that was received: what came after it is "
            "sent. It goes before `after`; browsers send it by themselves.",
            "schema": {"type": "string", "pattern": f"^{_SEQ.pattern}$"},
        }
    ]
}


def begins_after(request: Request, after: int | None, head: Event) -> int:
    """The seq that a stream begins behind: what `Last-Event-ID` says, else `after`, else the head.

    InvalidRequest where that is no seq of the log.
    """
    sent, param = request.headers.get(_HEADER), "after"
    if sent is not None:
        param = _HEADER
        if not _SEQ.fullmatch(sent.strip()):
            raise InvalidRequest(
                f"{_HEADER} must be the id of an event of this stream, which is its seq, such "
                f"as 41; got {sent[:40]!r}",
                param=_HEADER,
            )
        after = int(sent)
    return starting_after(after, head, param)


def router(tail: Tail) -> Declared:
    """`GET /v1/models/events`."""
    routes = Declared(prefix="/v1/models", tags=["audit"])

    @routes.get(
        "/events",
        response_class=Response,
        responses=_STREAM | TEXT_READ_ERRORS,
        openapi_extra=_LAST_EVENT_ID,
    )
    def watch_events(request: Request, query: Annotated[queries.WatchQuery, Query()]) -> Response:
        """Every event as it is committed, in order, none missed and none twice.

        Begins behind `Last-Event-ID` or `after`, otherwise with the next event. A comment every
        15 seconds keeps the connection open. The stream ends when the server stops; ask again with
        the last `id`. Where the key was revoked or has expired it ends with an event `refused`,
        within 15 seconds and before any other event.
        """
        tail.require_open()
        head = tail.store.head()
        return EventStream(tail, begins_after(request, query.after, head), head.seq)

    return routes
