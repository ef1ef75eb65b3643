"""Keeping what an update was worked out from: behind its changes, as blobs, or not at all.

Small operands are part of the event's payload, which costs a few bytes of a row that is written
anyway. Large ones are blobs under their own digests, kept where the policy or the plan asks for it.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch

from weightledger.ledger.blobs import Buffer
from weightledger.ledger.errors import UnsupportedModel
from weightledger.ledger.events.bodies.operands import (
    OUTSIDE,
    SWITCHED_OFF,
    TOO_LARGE,
    KeptTensor,
    Operands,
)
from weightledger.ledger.events.kinds import IN_BLOBS, IN_PAYLOAD
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import lanes, name_of, spec_of
from weightledger.ledger.tensors.spec import DTYPES, TensorSpec
from weightledger.ledger.writing.given import Given
from weightledger.ledger.writing.payload import PayloadWriter
from weightledger.ledger.writing.policy import KeepOperands

SMALL_BYTES = 64 * 1024
"""Operands of an event up to this size, all together, are kept in its payload."""


def keep(
    given: Given | None, policy: KeepOperands, payload: PayloadWriter
) -> tuple[Operands, Mapping[bytes, Buffer]]:
    """What the event says of its operands, and the blobs that they need.

    Small ones are written to `payload`, which must have all changes of the event by then.
    """
    if given is None:
        return Operands(None, why=OUTSIDE), {}
    if policy == "none":
        return Operands(None, why=SWITCHED_OFF), {}
    size = sum([tensor.nbytes for tensor in given.tensors.values()])
    kept_anyway = policy == "all" or given.always
    if size > SMALL_BYTES and not kept_anyway and all(map(_is_plain, given.tensors.values())):
        return Operands(None, why=TOO_LARGE), {}  # of a batch that is thousands of tensors
    try:
        kept = [
            described(name, tensor.dtype, tensor.shape)
            if _is_plain(tensor)
            else KeptTensor(spec_of(name, tensor))
            for name, tensor in given.tensors.items()
        ]
    except UnsupportedModel:  # a dtype that a caller may send and the ledger does not hold
        return Operands(None, why=OUTSIDE), {}
    if size <= SMALL_BYTES:
        for tensor in given.tensors.values():
            payload.write(_bytes(tensor).tobytes())
        return Operands(IN_PAYLOAD, tuple(kept), given.asked), {}
    if not kept_anyway:
        return Operands(None, why=TOO_LARGE), {}
    blobs: dict[bytes, Buffer] = {}
    addressed = []
    for one, tensor in zip(kept, given.tensors.values(), strict=True):
        # A copy: the caller may go on changing its own before the event is appended.
        data = _bytes(tensor).copy()
        digest = content_digest(data)
        blobs[digest] = data
        addressed.append(KeptTensor(one.spec, digest))
    return Operands(IN_BLOBS, tuple(addressed), given.asked), blobs


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is just a tensor of a dtype that the ledger holds, as nearly every operand is."""
    return type(tensor) is torch.Tensor and name_of(tensor.dtype) in DTYPES


@lru_cache(512)
def described(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> KeptTensor:
    """What a plain operand is; updates one by one have the same few."""
    return KeptTensor(TensorSpec(name, name_of(dtype), tuple(shape)))


def _bytes(tensor: torch.Tensor) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    return lanes(tensor).view(np.uint8)
