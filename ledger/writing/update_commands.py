"""The command that applies updates, and how it is made of requests that fit the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events.canonical import Plain, canonical
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.caller import ANYONE, Caller
from weightledger.ledger.writing.operands import flattened
from weightledger.ledger.writing.requests import (
    IncrementalUpdateRequest,
    Update,
    facts_of,
    metadata_text,
    validate,
)

MAX_BATCH = 4096
"""Most updates in one event."""

# Above this a request is worth a thread.
_MOST_VALUES = 4096


@dataclass(frozen=True, slots=True)
class ApplyUpdates:
    """Change parameters, in order, as one event.

    `batch` tells several updates, or one sent as a batch, from an update alone: their events and
    their digests differ. The metadata is the update's own where it is alone.
    """

    updates: tuple[Update, ...]
    caller: Caller = ANYONE
    metadata: str | None = None
    batch: bool = False

    def __post_init__(self) -> None:
        _check_batch(len(self.updates))
        if len(self.updates) > 1 and not self.batch:
            raise InvalidRequest("several updates in one event are a batch")

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the event says about what was asked for."""
        if not self.batch:
            return self.updates[0].facts
        return {"operation": "batch", "updates": facts_of(self.updates)}

    @property
    def digest(self) -> bytes:
        facts = self.facts
        # What is plain stays plain: then nobody looks at it once more.
        asked = Plain(facts) if type(facts) is Plain else dict(facts)
        asked["metadata"] = self.metadata
        return content_digest(canonical(asked))


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
    caller = ANYONE
    if not _is_anyones(request):
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
    _check_batch(len(requests))
    for number, request in enumerate(requests):
        _require_bare(number, request)
    rows = flattened([request.update_data for request in requests])
    updates = tuple(
        _validated(request, specs, first_names, row)
        for request, row in zip(requests, rows, strict=True)
    )
    return ApplyUpdates(updates, caller, metadata_text(metadata), batch=True)


def is_small(request: IncrementalUpdateRequest) -> bool:
    """Whether checking a request takes less time than handing it to a thread."""
    if not isinstance(request, IncrementalUpdateRequest):
        return True  # it is refused
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
    row: torch.Tensor | None = None,
) -> Update:
    _require_request(request)
    name = request.parameter_name
    first = first_names.get(name) if first_names and isinstance(name, str) else None
    if first is not None:
        request = replace(request, parameter_name=first)
    return validate(request, specs, row)


def _is_anyones(request: IncrementalUpdateRequest) -> bool:
    """Whether it neither says who asks nor names a condition."""
    return (
        request.idempotency_key is None
        and request.expected_seq is None
        and request.actor is None
        and request.reason is None
        and request.request_id is None
    )


def _require_request(request: object) -> None:
    if not isinstance(request, IncrementalUpdateRequest):
        raise InvalidRequest(
            f"an IncrementalUpdateRequest is expected, got a {type(request).__name__}"
        )


def _require_bare(number: int, request: IncrementalUpdateRequest) -> None:
    _require_request(request)
    if request.metadata is None and _is_anyones(request):
        return
    for name in ("idempotency_key", "expected_seq", "actor", "reason", "request_id", "metadata"):
        if getattr(request, name) is not None:
            raise InvalidRequest(
                f"update {number} of the batch has its own {name}; the batch is one event: give "
                "it there",
                param=name,
            )


def _check_batch(updates: int) -> None:
    """Raise InvalidRequest unless so many updates can be one event."""
    if not 1 <= updates <= MAX_BATCH:
        raise InvalidRequest(f"a batch has 1 to {MAX_BATCH} updates, got {updates}")
