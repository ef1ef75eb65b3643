"""Doing one task, and what became of it as JSON: a result, or the error that it raised."""

import importlib
import json
from collections.abc import Mapping
from typing import Any

from weightledger.ledger import errors
from weightledger.ledger.parallel import Task, Told

Answer = dict[str, Any]


def pack(value: Any) -> bytes:
    """Plain data as JSON; NaN and infinities are written, for both sides are ours."""
    return json.dumps(value, separators=(",", ":")).encode()


def unpack(data: bytes) -> Any:
    return json.loads(data)


def asked(task: Task) -> bytes:
    """A task as it is sent."""
    return pack({"function": task.function, "data": dict(task.data)})


def do(request: bytes, told: Told) -> Answer:
    """What a task comes to: {"result"} or {"error"}."""
    wanted = unpack(request)
    module, _, name = wanted["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    try:
        return {"result": function(told=told, **wanted["data"])}
    except errors.LedgerError as error:
        return {"error": described(error)}


def described(error: errors.LedgerError) -> Answer:
    """An error as plain data: its class, its words and what it carries."""
    carried = {key: value for key, value in vars(error).items() if _is_plain(value)}
    return {"class": type(error).__name__, "message": str(error), "fields": carried}


def result_of(answer: Mapping[str, Any]) -> Any:
    """The result that was answered; raises the error that was, as it was."""
    if "error" in answer:
        raise _raised(answer["error"])
    return answer["result"]


def _raised(told: Mapping[str, Any]) -> Exception:
    kind = getattr(errors, told["class"], errors.LedgerError)
    if not (isinstance(kind, type) and issubclass(kind, errors.LedgerError)):
        kind = errors.LedgerError
    error: errors.LedgerError = kind.__new__(kind)
    error.args = (told["message"],)
    vars(error).update(told["fields"])
    return error


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
