"""Many parameters in one atomic event, sent as a safetensors file."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import Depends, Query, Request, Response

from weightledger import DynamicModelManager, IncrementalUpdateRequest
from weightledger.api.rest import queries
from weightledger.api.rest.answers.writes import UpdateReply
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import answers, write_headers
from weightledger.api.rest.requests import caller, require_writes
from weightledger.api.rest.schemas import json_object, update_reply
from weightledger.api.rest.uploads import OCTET_STREAM, body_file, mapped_tensors
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.update_commands import batch_command

# NAME@indices beside NAME makes it sparse; NAME@a and NAME@b stand in its place, as factors.
_PARTS = ("indices", "a", "b")


def router(manager: DynamicModelManager, max_bytes: int) -> Declared:
    """The route for bodies that are too large for JSON, of up to `max_bytes`."""
    routes = Declared(prefix="/v1/models", tags=["dynamic updates"], max_body_size=max_bytes)

    @routes.post(
        "/batch_update",
        dependencies=[Depends(require_writes)],
        responses=answers(UpdateReply, write=True),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {OCTET_STREAM: {"schema": {"type": "string", "format": "binary"}}},
            },
            **write_headers(),
        },
    )
    async def batch_update(
        request: Request, response: Response, query: Annotated[queries.BatchQuery, Query()]
    ) -> dict[str, Any]:
        """Apply one update to each parameter named in a safetensors file, all or none.

        A tensor NAME is the update data of parameter NAME. With NAME@indices (int64, flat
        positions) it has one value for each; NAME@a [rows, r] and NAME@b [r, columns] stand in its
        place as low-rank factors.
        """
        facts = json_object(query.metadata, "metadata")
        folder = Path(manager.config.backup_dir)
        async with body_file(request, folder if folder.is_dir() else None) as path:
            with mapped_tensors(path) as tensors:
                log = manager.log
                requests = _requests(tensors, log.specs, query)
                command = await asyncio.to_thread(
                    batch_command,
                    requests,
                    log.specs,
                    log.first_names,
                    caller(request, log.live.head),
                    facts,
                )
                event = await manager.execute(command)
        response.headers["etag"] = f'"{event.state_seq}"'
        done = f"Successfully applied {len(requests)} updates as one event"
        return update_reply(manager.update_result(event), done)

    return routes


def _requests(
    tensors: Mapping[str, torch.Tensor],
    specs: Mapping[str, TensorSpec],
    query: queries.BatchQuery,
) -> list[IncrementalUpdateRequest]:
    """One request for each parameter named, in the order of the names."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, at, part = name.rpartition("@")
        if name in specs or not at or part not in _PARTS:
            parameter, part = name, "data"
        parts.setdefault(parameter, {})[part] = tensor
    made = []
    for name, given in sorted(parts.items()):
        if "a" in given or "b" in given:
            if set(given) != {"a", "b"}:
                raise InvalidRequest(
                    f"factors of {name!r} are {name}@a and {name}@b and nothing else, got "
                    + ", ".join(sorted(given)),
                    param=name,
                )
            fields: dict[str, Any] = {"factors": given}
        elif "data" not in given:
            raise InvalidRequest(f"{name}@indices needs the values in {name!r}", param=name)
        else:
            fields = {"update_data": given["data"], "indices": given.get("indices")}
        made.append(
            IncrementalUpdateRequest(
                name,
                learning_rate=query.learning_rate,
                update_type=query.update_type,
                **fields,
            )
        )
    return made
