"""Errors over HTTP: the ledger's error tree as OpenAI-style bodies, in one place.

Every error reply is {"error": {"message", "type", "param", "code"}}.
"""

import errno
import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException

from weightledger.api.rest.queries import first_problem
from weightledger.api.rest.writer import HandedOn, hand_on
from weightledger.ledger import errors

logger = logging.getLogger(__name__)

# The first class that matches decides, so subclasses stand before their bases.
_STATUS: tuple[tuple[type[errors.LedgerError], int, str, str], ...] = (
    (errors.PayloadTooLarge, 413, "invalid_request_error", "payload_too_large"),
    (errors.ContextTooLong, 400, "invalid_request_error", "context_length_exceeded"),
    (errors.InvalidRequest, 400, "invalid_request_error", "invalid_request"),
    (errors.ModelNotFound, 404, "invalid_request_error", "model_not_found"),
    (errors.NotFound, 404, "not_found_error", "not_found"),
    (errors.Pruned, 410, "not_found_error", "pruned"),
    (errors.OperationDisabled, 403, "permission_error", "disabled"),
    (errors.InsufficientScope, 403, "permission_error", "insufficient_scope"),
    (errors.NotAllowed, 403, "permission_error", "not_allowed"),
    (errors.NotShownYet, 409, "conflict_error", "not_shown_yet"),
    (errors.Conflict, 409, "conflict_error", "conflict"),
    (errors.PreconditionFailed, 412, "conflict_error", "precondition_failed"),
    (errors.IdempotencyMismatch, 422, "invalid_request_error", "idempotency_key_reused"),
    (errors.WhatIfRefused, 422, "invalid_request_error", "what_if_refused"),
    (errors.JudgeFailed, 422, "invalid_request_error", "judge_failed"),
    (errors.StorageFull, 503, "server_error", "storage_full"),
    (errors.OutcomeUnknown, 503, "server_error", "outcome_unknown"),
    (errors.StorageError, 503, "server_error", "storage_unavailable"),
    (errors.WeightsMismatch, 503, "server_error", "weights_mismatch"),
    (errors.Unavailable, 503, "server_error", "unavailable"),
    (errors.ReplicaSuperseded, 503, "server_error", "replica_superseded"),
    (errors.EngineUnavailable, 503, "server_error", "engine_unavailable"),
    (errors.ProofError, 500, "server_error", "proof_failed"),
    (errors.CorruptLedger, 500, "server_error", "corrupt_ledger"),
    (errors.LedgerError, 500, "server_error", "ledger_error"),
)

_HTTP_TYPES = {
    400: ("invalid_request_error", "invalid_request"),
    401: ("authentication_error", "unauthorized"),
    403: ("permission_error", "forbidden"),
    404: ("not_found_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("invalid_request_error", "request_timeout"),
    413: ("invalid_request_error", "payload_too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    503: ("server_error", "unavailable"),
}


TOO_LARGE = (
    "the body is larger than this route takes; send large updates to /v1/models/batch_update as a "
    "safetensors file"
)


def error_response(
    status: int,
    message: str,
    *,
    type_: str | None = None,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error reply in the one form that every route uses."""
    default_type, default_code = _HTTP_TYPES.get(status, ("server_error", "error"))
    body: dict[str, Any] = {
        "message": message,
        "type": type_ or default_type,
        "param": param,
        "code": code or default_code,
    }
    return JSONResponse({"error": body}, status_code=status, headers=headers)


def install(app: FastAPI) -> None:
    """Answer the ledger's and HTTP's errors in the one form; `Door` answers unexpected ones."""
    app.add_exception_handler(errors.AwaitingApproval, _waiting)
    app.add_exception_handler(HandedOn, _handed_on)
    app.add_exception_handler(errors.LedgerError, _ledger_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)


def openai_error(error: errors.LedgerError) -> tuple[int, dict[str, Any]]:
    """The status of an error of the ledger, and its `{"error": …}` body."""
    status, type_, code = next(
        (status, type_, code) for cls, status, type_, code in _STATUS if isinstance(error, cls)
    )
    param = getattr(error, "param", None)
    return status, {"error": {"message": str(error), "type": type_, "param": param, "code": code}}


def _ledger_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.LedgerError)
    status, body = openai_error(error)
    request.state.code = body["error"]["code"]
    if status >= 500:
        logger.error(
            "%s %s: %s",
            request.method,
            request.url.path,
            error,
            extra={
                "request_id": getattr(request.state, "request_id", None),
                "actor": getattr(request.state, "actor", None),
                "code": request.state.code,
                "status": status,
            },
        )
    headers: dict[str, str] = {}
    if isinstance(error, errors.Conflict):
        headers["x-should-retry"] = "false"
    if isinstance(error, errors.InsufficientScope):
        headers["www-authenticate"] = f'Bearer error="insufficient_scope", scope="{error.scope}"'
    if isinstance(error, errors.PreconditionFailed):
        headers["etag"] = f'"{error.head_seq}"'
    if isinstance(error, errors.OutcomeUnknown) and "idempotency-key" not in request.headers:
        headers["x-should-retry"] = "false"  # it might be recorded twice
    elif status == 503:
        headers["retry-after"] = "1"
    return JSONResponse(body, status_code=status, headers=headers or None)


async def _handed_on(request: Request, error: Exception) -> Response:
    try:
        return await hand_on(request, error)
    except errors.LedgerError as problem:
        return _ledger_error(request, problem)


def _waiting(request: Request, error: Exception) -> JSONResponse:
    """A write that waits for a second person is no error: it was taken, and not carried out."""
    assert isinstance(error, errors.AwaitingApproval)
    body = {"success": False, "message": str(error), "data": {"approval_id": error.approval_id}}
    return JSONResponse(body, status_code=202)


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    headers = dict(error.headers or {})
    if error.status_code == 413:
        message = TOO_LARGE
    if error.status_code == 404 and message == "Not Found":
        message = f"no route {request.method} {request.url.path}"
    if error.status_code == 405:
        headers["Allow"] = _allowed(request, headers.get("Allow", "another method"))
        message = f"{request.url.path} takes {headers['Allow']}, not {request.method}"
    return error_response(error.status_code, message, headers=headers or None)


def _allowed(request: Request, of_one_route: str) -> str:
    """The methods of a path: each is a route of its own, and only one of them was asked."""
    path = getattr(request.scope.get("route"), "path_format", None)
    documented = {
        name
        for one in iter_route_contexts(request.app.routes)
        if one.path_format == path and getattr(one.original_route, "include_in_schema", False)
        for name in one.methods or ()
    }
    methods = sorted(documented | set(of_one_route.split(", ")))
    return ", ".join(methods).replace("GET", "GET, HEAD")  # `heads` answers it


def _invalid_parameter(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    message, param = first_problem(error.errors())
    return error_response(400, message, param=param)


def unexpected(error: Exception) -> JSONResponse:
    """The reply to an error that nobody raised on purpose."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        message = "the server has as many files open as it may (ulimit -n): try again"
        return error_response(503, message, code="storage_unavailable")
    return error_response(500, f"internal error: {type(error).__name__}", code="internal")
