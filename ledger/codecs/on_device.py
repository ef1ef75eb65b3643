"""Comparing tensors where they are: of a tensor on a GPU, only what changed comes to the CPU."""

import numpy as np
import torch
from numpy.typing import NDArray

from weightledger.ledger.codecs import loops
from weightledger.ledger.codecs.delta import NEARLY_ALL, Delta, compare, from_values
from weightledger.ledger.tensors.digest import CHUNK_BYTES
from weightledger.ledger.tensors.lanes import lanes, shares_memory
from weightledger.ledger.tensors.spec import ElementType, Lanes

# Elements compared at a time where the first difference is the answer.
_COMPARED = 1 << 16
# From here on a compiled loop is worth what compiling it costs.
_MANY_BYTES = 1024 * 1024
# Signed, since not every device can index unsigned integers; only equality is asked of them.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one spec hold the same bits; stops soon after the first difference."""
    flat, others = one.detach().reshape(-1), other.detach().reshape(-1)
    if both_on(flat, others):
        return same_there(flat, others)
    if one.nbytes >= _MANY_BYTES and shares_memory(flat) and shares_memory(others):
        return bool(loops.same(lanes(flat), lanes(others)))
    return all(
        np.array_equal(lanes(flat[at : at + _COMPARED]), lanes(others[at : at + _COMPARED]))
        for at in range(0, len(flat), _COMPARED)
    )


def both_on(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are on one device that is not the CPU."""
    return one.device == other.device and not one.is_cpu


def same_there(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two flat tensors of one dtype and device hold the same bits."""
    return torch.equal(_bits(one), _bits(other))


def compare_there(
    before: torch.Tensor,
    after: torch.Tensor,
    element: ElementType,
    where: torch.Tensor | None = None,
) -> Delta:
    """`codecs.compare` of two flat tensors, on their device.

    `where` are ascending lanes outside of which nothing was written, int64 on any device; None has
    every lane compared.
    """
    old, new = _bits(before), _bits(after)
    if where is None:
        changed = torch.nonzero(old != new).view(-1)
    else:
        where = where.to(old.device)
        changed = where[old.index_select(0, where) != new.index_select(0, where)]
    if len(changed) > NEARLY_ALL * len(old):
        return compare(lanes(before), lanes(after), element.ordered)
    return from_values(
        changed.cpu().numpy().astype(np.int32),
        lanes(old.index_select(0, changed)).view(element.lane),
        lanes(new.index_select(0, changed)).view(element.lane),
        len(old),
        element.ordered,
    )


def fetch(tensor: torch.Tensor, chunks: NDArray[np.intp]) -> Lanes:
    """The lanes of a flat tensor, of which only the digest chunks with these numbers are copied.

    What lies between them is undefined.
    """
    per_chunk = CHUNK_BYTES // tensor.itemsize
    first = lanes(tensor[:0])
    fetched: Lanes = np.empty(tensor.nbytes // first.itemsize, first.dtype)
    per_chunk_lanes = CHUNK_BYTES // first.itemsize
    for number in chunks.tolist():
        part = lanes(tensor[number * per_chunk : (number + 1) * per_chunk])
        fetched[number * per_chunk_lanes :][: len(part)] = part
    return fetched


def _bits(flat: torch.Tensor) -> torch.Tensor:
    size = flat.itemsize // 2 if flat.is_complex() else flat.itemsize
    return flat.detach().resolve_conj().resolve_neg().contiguous().view(_BITS[size])
