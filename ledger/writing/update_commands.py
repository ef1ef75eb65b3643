"""From requests for updates to the command that applies them, checked against the model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.caller import ANYONE, Caller
from weightledger.ledger.writing.commands import ApplyUpdates, check_batch
from weightledger.ledger.writing.requests import (
    IncrementalUpdateRequest,
    Update,
    metadata_text,
    validate,
)

# Above this a request is worth a thread.
_MOST_VALUES = 4096


def update_command(
    request: IncrementalUpdateRequest,
    specs: Mapping[str, TensorSpec],
    first_names: Mapping[str, str],
) -> ApplyUpdates:
    """One update as an event of its own.

    `specs` are the model's tensors by bare name, `first_names` map the further names of tied ones
    to the first. Raises InvalidRequest or NotFound when the request does not fit the model.
    """
    update = _validated(request, specs, first_names)
    caller = Caller(
        request.actor,
        request.reason,
        request.request_id,
        request.idempotency_key,
        request.expected_seq,
    )
    return ApplyUpdates((update,), caller, update.metadata)


def batch_command(
    requests: Sequence[IncrementalUpdateRequest],
    specs: Mapping[str, TensorSpec],
    first_names: Mapping[str, str],
    caller: Caller = ANYONE,
    metadata: Mapping[str, Any] | None = None,
) -> ApplyUpdates:
    """1 to MAX_BATCH updates, in order, as one atomic event.

    `caller` and `metadata` belong to the event; a request that has its own is refused. One update
    that does not fit refuses all of them.
    """
    check_batch(len(requests))
    for number, request in enumerate(requests):
        _require_bare(number, request)
    updates = tuple(_validated(request, specs, first_names) for request in requests)
    return ApplyUpdates(updates, caller, metadata_text(metadata), batch=True)


def is_small(request: IncrementalUpdateRequest) -> bool:
    """Whether checking a request takes less time than handing it to a thread."""
    sent = [request.update_data, request.indices]
    if isinstance(request.factors, Mapping):
        sent += request.factors.values()
    return all(_values(data) <= _MOST_VALUES for data in sent)


def _values(data: Any) -> int:
    """How many values there are in what was sent; nested lists are taken to be regular."""
    count = 1
    while isinstance(data, list | tuple) and data:
        count, data = count * len(data), data[0]
    size: int = getattr(data, "size", 1) if isinstance(data, np.ndarray) else 1
    if isinstance(data, torch.Tensor):
        size = data.numel()
    return count * size


def _validated(
    request: IncrementalUpdateRequest,
    specs: Mapping[str, TensorSpec],
    first_names: Mapping[str, str],
) -> Update:
    name = request.parameter_name
    first = first_names.get(name) if first_names and isinstance(name, str) else None
    return validate(request if first is None else replace(request, parameter_name=first), specs)


def _require_bare(number: int, request: IncrementalUpdateRequest) -> None:
    if (
        request.idempotency_key is None
        and request.expected_seq is None
        and request.actor is None
        and request.reason is None
        and request.request_id is None
        and request.metadata is None
    ):
        return
    for name in ("idempotency_key", "expected_seq", "actor", "reason", "request_id", "metadata"):
        if getattr(request, name) is not None:
            raise InvalidRequest(
                f"update {number} of the batch has its own {name}; the batch is one event: give "
                "it there",
                param=name,
            )
