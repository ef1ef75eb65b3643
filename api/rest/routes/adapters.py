"""Adapters: loaded and unloaded by vLLM's routes, merged into the base by one of ours."""

from typing import Any

from fastapi import Depends, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, TypeAdapter

from weightledger import DynamicModelManager
from weightledger.api.rest.answers.writes import UpdateReply
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import TEXT_WRITE_ERRORS, answers, json_body
from weightledger.api.rest.requests import body, caller, require_writes
from weightledger.api.rest.schemas import update_reply
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import Event
from weightledger.ledger.writing.commands import LoadAdapter, MergeAdapter, UnloadAdapter

# `GET /v1/models/NAME` of an adapter called so would lead elsewhere.
RESERVED = frozenset(
    [
        "incremental_update",
        "batch_update",
        "enhanced_update",
        "create_version",
        "rollback",
        "versions",
        "status",
        "parameters",
        "updates",
        "checkpoint",
        "consistency",
        "verify",
        "diff",
        "blame",
        "replay",
        "bisect",
        "reproduce",
        "metrics",
        "events",
        "merge_adapter",
        "activity",
        "adopt_what_if",
        "approvals",
        "holds",
        "redact",
        "signing_key",
        "trials",
    ]
)


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    lora_name: str


class LoadBody(_Body):
    """POST /v1/load_lora_adapter"""

    lora_path: str
    load_inplace: bool = False


class UnloadBody(_Body):
    """POST /v1/unload_lora_adapter; the id is vLLM's own, and does nothing there either."""

    lora_int_id: int | None = None


class MergeBody(_Body):
    """POST /v1/models/merge_adapter"""

    unload: bool = True


_ADAPTER = {"lora_name": "style", "lora_path": "/srv/adapters/style"}

LOAD: TypeAdapter[LoadBody] = TypeAdapter(LoadBody)
UNLOAD: TypeAdapter[UnloadBody] = TypeAdapter(UnloadBody)
MERGE: TypeAdapter[MergeBody] = TypeAdapter(MergeBody)


def router(manager: DynamicModelManager) -> Declared:
    """`/v1/load_lora_adapter`, `/v1/unload_lora_adapter` and `/v1/models/merge_adapter`."""
    routes = Declared(prefix="/v1", tags=["adapters"], dependencies=[Depends(require_writes)])

    @routes.post(
        "/load_lora_adapter",
        response_class=PlainTextResponse,
        responses=TEXT_WRITE_ERRORS,
        openapi_extra=json_body(LoadBody, _ADAPTER, write=True),
    )
    async def load_lora_adapter(request: Request) -> Response:
        """Serve the adapter in a folder of the server under a name."""
        sent = await body(request, LOAD)
        if not sent.lora_name or not sent.lora_path:
            raise InvalidRequest(
                "Both 'lora_name' and 'lora_path' must be provided.",
                param="lora_path" if sent.lora_name else "lora_name",
            )
        if sent.lora_name in RESERVED:
            raise InvalidRequest(f"lora_name {sent.lora_name!r} is reserved", param="lora_name")
        event = await manager.execute(
            LoadAdapter(
                sent.lora_name,
                sent.lora_path,
                sent.load_inplace,
                caller(request, manager.log.live.head),
            )
        )
        return _done(f"Success: LoRA adapter '{sent.lora_name}' added successfully.", event)

    @routes.post(
        "/unload_lora_adapter",
        response_class=PlainTextResponse,
        responses=TEXT_WRITE_ERRORS,
        openapi_extra=json_body(UnloadBody, {"lora_name": "style"}, write=True),
    )
    async def unload_lora_adapter(request: Request) -> Response:
        """Stop serving an adapter."""
        sent = await body(request, UNLOAD)
        event = await manager.execute(
            UnloadAdapter(sent.lora_name, caller(request, manager.log.live.head))
        )
        return _done(f"Success: LoRA adapter '{sent.lora_name}' removed successfully.", event)

    @routes.post(
        "/models/merge_adapter",
        responses=answers(UpdateReply, write=True),
        openapi_extra=json_body(MergeBody, {"lora_name": "style"}, write=True),
    )
    async def merge_adapter(request: Request, response: Response) -> dict[str, Any]:
        """Add an adapter to the base weights: one event, which can be rolled back exactly."""
        sent = await body(request, MERGE)
        event = await manager.execute(
            MergeAdapter(sent.lora_name, sent.unload, caller(request, manager.log.live.head))
        )
        response.headers["etag"] = f'"{event.state_seq}"'
        result = manager.update_result(event)
        return update_reply(
            result, f"Successfully merged adapter {sent.lora_name}", "Failed to merge adapter"
        )

    return routes


def _done(text: str, event: Event) -> Response:
    headers = {
        "etag": f'"{event.state_seq}"',
        "x-weights-seq": str(event.state_seq),
        "x-weights-digest": event.state_after.hex(),
    }
    return PlainTextResponse(text, headers=headers)
