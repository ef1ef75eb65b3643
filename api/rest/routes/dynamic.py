"""The five routes of the specification."""

import asyncio
from typing import Any

from fastapi import Depends, Request, Response

from weightledger import DynamicModelManager, IncrementalUpdateRequest
from weightledger.api.rest import schemas
from weightledger.api.rest.answers.versions import PinReply, Status, VersionList, VersionReply
from weightledger.api.rest.answers.writes import RollbackReply, UpdateReply
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import answers, json_body, write_headers
from weightledger.api.rest.requests import body, caller, require_no_body, require_writes
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies import VersionRetired, body_of
from weightledger.ledger.writing.commands import CreateVersion, Pin, Retire

Reply = dict[str, Any]

_UPDATES = (
    {
        "parameter_name": "2.bias",
        "update_data": [0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        "learning_rate": 0.01,
        "update_type": "additive",
        "metadata": {"ticket": "OPS-17"},
    },
    {"parameter_name": "2.bias", "update_data": 0.001},
)


def router(manager: DynamicModelManager) -> Declared:
    """Routes that change the model and name its versions."""
    routes = Declared(prefix="/v1/models", tags=["dynamic updates"])
    writes = [Depends(require_writes)]
    alone = [*writes, Depends(require_no_body)]

    @routes.post(
        "/incremental_update",
        dependencies=writes,
        responses=answers(UpdateReply, write=True),
        openapi_extra=json_body(schemas.IncrementalUpdateBody, *_UPDATES, write=True),
    )
    async def incremental_update(request: Request, response: Response) -> Reply:
        """Apply one update to one parameter."""
        sent = await body(request, schemas.UPDATE)
        who = caller(request, manager.log.live.head)
        if sent.factors is None and "update_data" not in sent.model_fields_set:
            raise InvalidRequest("update_data: Field required", param="update_data")
        event = await manager.update(
            IncrementalUpdateRequest(
                parameter_name=sent.parameter_name,
                update_data=sent.update_data,
                indices=sent.indices,
                factors=None if sent.factors is None else sent.factors.model_dump(),
                learning_rate=sent.learning_rate,
                update_type=sent.update_type,
                metadata=sent.metadata,
                idempotency_key=who.idempotency_key,
                expected_seq=who.expected_seq,
                actor=who.actor,
                reason=who.reason,
                request_id=who.request_id,
            )
        )
        _tag(response, event)
        done = f"Successfully applied incremental update to {sent.parameter_name}"
        return schemas.update_reply(manager.update_result(event), done)

    @routes.post(
        "/create_version",
        dependencies=writes,
        responses=answers(VersionReply, write=True),
        openapi_extra=json_body(
            schemas.VersionBody, {"description": "after the night run"}, write=True
        ),
    )
    async def create_version(request: Request, response: Response) -> Reply:
        """Name the current state."""
        sent = await body(request, schemas.VERSION)
        event = await manager.execute(
            CreateVersion(sent.description, caller(request, manager.log.live.head))
        )
        _tag(response, event)
        message = f"Successfully created model version: {event.name}"
        return {"success": True, "message": message, "data": {"version_id": event.name}}

    @routes.post(
        "/rollback",
        dependencies=writes,
        responses=answers(RollbackReply, write=True),
        openapi_extra=json_body(schemas.RollbackBody, {"version_id": "head~1"}, write=True),
    )
    async def rollback(request: Request, response: Response) -> Reply:
        """Move the model to a version, or to any other position."""
        sent = await body(request, schemas.ROLLBACK)
        event = await manager.rollback(
            sent.version_id, caller=caller(request, manager.log.live.head)
        )
        result = await asyncio.to_thread(manager.rollback_result, event)
        _tag(response, event)
        message = f"Successfully rolled back to version: {sent.version_id}"
        data = {key: value for key, value in result.items() if key != "success"}
        return {"success": True, "message": message, "data": data}

    @routes.post(
        "/versions/{version_id}/pin",
        dependencies=alone,
        responses=answers(PinReply, write=True),
        openapi_extra=write_headers(),
    )
    async def pin_version(request: Request, response: Response, version_id: str) -> Reply:
        """Keep a version for ever: it is never retired."""
        return await set_pin(request, response, version_id, True)

    @routes.post(
        "/versions/{version_id}/unpin",
        dependencies=alone,
        responses=answers(PinReply, write=True),
        openapi_extra=write_headers(),
    )
    async def unpin_version(request: Request, response: Response, version_id: str) -> Reply:
        """Let a version be retired again."""
        return await set_pin(request, response, version_id, False)

    async def set_pin(request: Request, response: Response, version_id: str, pinned: bool) -> Reply:
        event = await manager.execute(
            Pin(version_id, pinned, caller(request, manager.log.live.head))
        )
        _tag(response, event)
        done = "pinned" if pinned else "unpinned"
        data = {"version_id": version_id, "pinned": pinned}
        return {"success": True, "message": f"Version {version_id} {done}", "data": data}

    @routes.post(
        "/versions/{version_id}/retire",
        dependencies=alone,
        responses=answers(VersionReply, write=True),
        openapi_extra=write_headers(),
    )
    async def retire_version(request: Request, response: Response, version_id: str) -> Reply:
        """Take a version off the list: gc may drop what only it needs; its events stay."""
        event = await manager.execute(Retire(version_id, caller(request, manager.log.live.head)))
        _tag(response, event)
        name = body_of(event, VersionRetired).version_id
        data = {"version_id": name}
        return {"success": True, "message": f"Version {name} retired", "data": data}

    @routes.get("/versions", responses=answers(VersionList))
    def list_versions() -> Reply:
        """Listed versions, newest first."""
        listed = manager.list_versions()
        return {"versions": listed, "total_count": len(listed)}

    @routes.get("/status", responses=answers(Status))
    def get_status(response: Response) -> Reply:
        """Where the model stands."""
        _tag(response, manager.log.live.head)
        return manager.get_status()

    return routes


def _tag(response: Response, event: Event) -> None:
    """The ETag of a reply is the seq of the last state change, at the reply's own event."""
    response.headers["etag"] = f'"{event.state_seq}"'
