"""Legal holds of versions: listed, placed, released."""

from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response

from weightledger import DynamicModelManager
from weightledger.api.items import hold_item
from weightledger.api.rest import queries, schemas
from weightledger.api.rest.answers.holds import Hold, HoldList
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import answers, json_body
from weightledger.api.rest.requests import body, caller_because, require_writes
from weightledger.ledger.events import Event
from weightledger.ledger.history import holds
from weightledger.ledger.writing import commands


def router(manager: DynamicModelManager) -> Declared:
    """`GET` and `POST /v1/models/holds`, `POST /v1/models/holds/{id}/release`."""
    routes = Declared(prefix="/v1/models/holds", tags=["versions"])
    writes = [Depends(require_writes)]
    store = manager.log.history.store

    @routes.get("", responses=answers(HoldList))
    def list_holds(query: Annotated[queries.HoldsQuery, Query()]) -> dict[str, Any]:
        """Legal holds that there are or were, newest first."""
        wanted = [one for one in holds.every(store) if query.standing in (None, one.stands)]
        return {"object": "list", "data": [hold_item(one) for one in wanted]}

    @routes.post(
        "",
        dependencies=writes,
        responses=answers(Hold, write=True),
        openapi_extra=json_body(
            schemas.HoldBody, {"version_id": "v0", "reason": "case 12"}, write=True
        ),
    )
    async def place_hold(request: Request, response: Response) -> dict[str, Any]:
        """Put a version under legal hold: it is not retired, and gc keeps its state."""
        asked = await body(request, schemas.HOLD)
        who = caller_because(request, manager.log.live.head, asked.reason)
        event = await manager.execute(commands.PlaceHold(asked.version_id, who))
        return _reply(response, event)

    @routes.post(
        "/{hold_id}/release",
        dependencies=writes,
        responses=answers(Hold, write=True),
        openapi_extra=json_body(schemas.ReleaseBody, {"reason": "case 12 is closed"}, write=True),
    )
    async def release_hold(request: Request, response: Response, hold_id: str) -> dict[str, Any]:
        """Release one legal hold; the version may be under others still."""
        asked = await body(request, schemas.RELEASE)
        who = caller_because(request, manager.log.live.head, asked.reason)
        event = await manager.execute(commands.Release(hold_id, who))
        return _reply(response, event)

    def _reply(response: Response, event: Event) -> dict[str, Any]:
        response.headers["etag"] = f'"{event.state_seq}"'
        return hold_item(holds.find(store, f"hold_{event.number}"))

    return routes
