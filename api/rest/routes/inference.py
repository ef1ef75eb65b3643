"""Inference of the model in this process: each reply names the state it came from."""

import time

import torch
from fastapi import Request, Response
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from weightledger.api.rest import schemas
from weightledger.api.rest.answers.models import Predictions
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import answers, json_body
from weightledger.api.rest.model_selection import Inferring, Origin
from weightledger.api.rest.outputs import outcome_of, plain
from weightledger.api.rest.requests import body, request_key
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring.samples import Measuring
from weightledger.ledger.tensors.lanes import TORCH_DTYPES
from weightledger.ledger.writing.operands import leaf_types


def router(manager: Inferring) -> Declared:
    """`/invocations`."""
    routes = Declared(tags=["inference"])

    @routes.post(
        "/invocations",
        responses=answers(Predictions),
        openapi_extra=json_body(schemas.InvocationBody, {"inputs": [[0.0] * 64]}, scope="read"),
    )
    async def invocations(request: Request) -> Response:
        """`{"inputs": [[…]]}` → `{"predictions": […]}`, one per row of inputs."""
        sent = await body(request, schemas.INVOCATION)
        measuring = Measuring(request_key(request), time.perf_counter())
        return await run_in_threadpool(_infer, manager, sent, measuring)

    return routes


def _infer(manager: Inferring, sent: schemas.InvocationBody, measuring: Measuring) -> Response:
    inputs = _tensor(sent)
    measuring.items = len(inputs) if inputs.ndim else 1
    with manager.lease(measuring=measuring) as live:
        module = live.module
        try:
            with torch.inference_mode():
                output = module(inputs)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            measuring.outcome = "failed"
            raise InvalidRequest(
                f"the model refused inputs of shape {tuple(inputs.shape)} and dtype {sent.dtype}: "
                f"{error}",
                param="inputs",
            ) from None
        measuring.outcome = outcome_of(output)
        predictions = plain(output)
        origin = Origin(live.seq, live.digest)
    return Response(
        to_json({"predictions": predictions}, inf_nan_mode="null"),
        media_type="application/json",
        headers=origin.headers,
    )


def _tensor(sent: schemas.InvocationBody) -> torch.Tensor:
    if sent.dtype not in TORCH_DTYPES:
        raise InvalidRequest(f"dtype must be one of {', '.join(TORCH_DTYPES)}", param="dtype")
    if bool in leaf_types(sent.inputs) and sent.dtype != "bool":
        raise InvalidRequest("inputs must be numbers, got values of type bool", param="inputs")
    try:
        return torch.tensor(sent.inputs, dtype=TORCH_DTYPES[sent.dtype])
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise InvalidRequest(
            f"inputs must be numbers in nested lists of equal length: {error}", param="inputs"
        ) from None
