"""Recording a change of a small tensor: `encoding` without its tiles, threads and copies.

What those cost is most of a small update. A property test holds that both lead to equal headers,
bits and digests.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from weightledger.ledger.codecs import loops
from weightledger.ledger.codecs.delta import compare
from weightledger.ledger.codecs.few import encode_few
from weightledger.ledger.codecs.frames import encode_frame
from weightledger.ledger.codecs.one_pass import look
from weightledger.ledger.errors import WeightsChangedOutside
from weightledger.ledger.events.changes import FRAMES, TensorChange
from weightledger.ledger.projection.change import HashedTensor
from weightledger.ledger.tensors.digest import (
    CHUNK_BYTES,
    checksum_of,
    chunk_digests,
    is_unchanged,
    root,
)
from weightledger.ledger.tensors.lanes import lanes, shares_memory
from weightledger.ledger.tensors.spec import WEIGHTS, Lanes, TensorSpec
from weightledger.ledger.writing.payload import PayloadWriter
from weightledger.ledger.writing.plan import Write

Seen = tuple[bytes, int, float, bytes | None, bytes | None]
"""The frame that leads from one tensor to another, how many lanes it changes, their square
distance, and the checksums of both where they are known by then."""


def is_small(spec: TensorSpec, before: HashedTensor, write: Write) -> bool:
    """Whether a change is one of all of a float32 tensor in memory that is a single chunk."""
    return (
        write.positions is None
        and write.factors is None
        and write.source is None
        and spec.dtype == "float32"
        and 0 < spec.nbytes <= CHUNK_BYTES
        and shares_memory(before.tensor)
        and shares_memory(write.after)
    )


def record_small(
    spec: TensorSpec, before: HashedTensor, write: Write, payload: PayloadWriter
) -> tuple[TensorChange, HashedTensor, float | None]:
    """What `encoding.record_tensors` gives of one tensor."""
    change, new, norm, frame = changed_small(spec.name, before, write.after)
    payload.write(frame)
    return change, new, norm if math.isfinite(norm) else None


def changed_small(
    name: str, before: HashedTensor, after: torch.Tensor
) -> tuple[TensorChange, HashedTensor, float, bytes]:
    """A small tensor's change, what it leads to, the L2 norm of after − before, and the frame that
    is its part of the payload: of no bytes where nothing changes."""
    old, new = lanes(before.tensor.detach(), name), lanes(after.detach(), name)
    frame, changed, square, known, checksum = (
        _few(old, new) or _at_once(old, new) or _in_steps(old, new)
    )
    if not is_unchanged(before.chunks, before.checksums, old, known):
        raise changed_outside(name)
    if not changed:
        frame = b""
    chunks = chunk_digests(new)
    return (
        TensorChange(name, root(before.chunks), root(chunks), len(frame), changed, FRAMES),
        HashedTensor(after, chunks, bytearray(checksum or checksum_of(new))),
        math.sqrt(square),
        frame,
    )


def _few(old: Lanes, new: Lanes) -> Seen | None:
    """By two loops; None where there are more lanes, or many of them stay as they are."""
    few = encode_few(old, new, True)
    return None if few is None else (*few, square_distance(old, new, None), None, None)


def _at_once(old: Lanes, new: Lanes) -> Seen | None:
    """By one loop; None where that does not reach what it needs."""
    looked = look(old, new, True, squared=True)
    if looked is None:
        return None
    frame = looked.frame if looked.delta is None else encode_frame(looked.delta)
    if not looked.changed:
        return frame, 0, 0.0, None, None
    sums = looked.before.tobytes(), looked.after.tobytes()
    return frame, looked.changed, looked.square, *sums


def _in_steps(old: Lanes, new: Lanes) -> Seen:
    delta = compare(old, new, True)
    changed = int(np.count_nonzero(old != new)) if delta.indices is None else delta.changed
    square = square_distance(old, new, delta.indices) if changed else 0.0
    return encode_frame(delta), changed, square, None, None


def square_distance(before: Lanes, after: Lanes, positions: NDArray[np.int32] | None) -> float:
    """The sum of the squares of after − before, at some positions or everywhere."""
    if positions is None:
        return float(loops.square_distance_of_all(before, after))
    return float(loops.square_distance(before, after, positions))


def changed_outside(name: str) -> WeightsChangedOutside:
    """A change computed from bits that the log does not have could never be rebuilt."""
    return WeightsChangedOutside(
        f"live weights were changed without the ledger: {name.removeprefix(WEIGHTS)}"
    )
