"""Recording a change of a small tensor: `encoding` without its tiles, threads and copies.

What those cost is most of a small update. A property test holds that both lead to equal headers,
bits and digests.
"""

import math

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.codecs import loops
from weightledger.ledger.codecs.delta import Delta, compare
from weightledger.ledger.codecs.few import encode_few
from weightledger.ledger.codecs.frames import encode_frame
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
    name = spec.name
    old, new = lanes(before.tensor.detach(), name), lanes(write.after.detach(), name)
    if not is_unchanged(before.chunks, before.checksums, old):
        raise changed_outside(name)
    few = encode_few(old, new, True)
    positions = None
    if few is not None:
        frame, changed = few
    else:
        delta = compare(old, new, True)
        positions = delta.indices
        changed = len(positions) if positions is not None else _nonzero(delta)
        frame = encode_frame(delta) if changed else b""
    norm = math.sqrt(square_distance(old, new, positions)) if changed else 0.0
    chunks = chunk_digests(new)
    size = payload.write(frame) if changed else 0
    return (
        TensorChange(name, root(before.chunks), root(chunks), size, changed, FRAMES),
        HashedTensor(write.after, chunks, checksum_of(new)),
        norm if math.isfinite(norm) else None,
    )


def _nonzero(delta: Delta) -> int:
    return int(np.count_nonzero(delta.difference))


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
