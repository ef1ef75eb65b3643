"""Which part of a tensor a rank has: a range of its bytes, in the order of C.

Of DTensors whose rows are cut (`Shard(0)`, on one dimension of the mesh or on several, beside
replicas or not) that is what is there. Of any other placement, columns above all, the whole tensor
is put together, one tensor at a time.
"""

import math
from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from weightledger.ledger.codecs.on_device import same_bits
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.tensors.lanes import check_tensor, name_of
from weightledger.ledger.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Part:
    """The elements [start, stop) of a tensor, flat and on the CPU; `copied` where other ranks may
    have the same."""

    spec: TensorSpec
    start: int
    stop: int
    values: torch.Tensor
    copied: bool


def check(name: str, tensor: torch.Tensor) -> TensorSpec:
    """What the whole tensor is; nothing is asked of other ranks.

    UnsupportedModel where the ledger cannot hold it, InvalidRequest for a tensor whose value is
    still to be summed up (`Partial`).
    """
    if isinstance(tensor, DTensor) and any(one.is_partial() for one in tensor.placements):
        raise InvalidRequest(
            f"tensor {name!r} is a partial sum: redistribute it before it is recorded", param=name
        )
    check_tensor(name, tensor.to_local() if isinstance(tensor, DTensor) else tensor)
    return TensorSpec(name, name_of(tensor.dtype), tuple(tensor.shape))


def part_of(name: str, tensor: torch.Tensor) -> Part:
    """What this rank has of a tensor that was checked; a collective call where it is put together
    for that, so all ranks ask for the same tensors in the same order."""
    spec = check(name, tensor)
    if not isinstance(tensor, DTensor):
        return Part(spec, 0, spec.numel, _flat(tensor), True)
    rows = rows_of(tensor)
    if rows is None:
        return Part(spec, 0, spec.numel, _flat(tensor.full_tensor()), True)
    if not spec.shape:
        return Part(spec, 0, 1, _flat(tensor.to_local()), True)
    row = math.prod(spec.shape[1:])
    copied = any(isinstance(one, Replicate) for one in tensor.placements)
    return Part(spec, rows[0] * row, rows[1] * row, _flat(tensor.to_local()), copied)


def rows_of(tensor: DTensor) -> tuple[int, int] | None:
    """The rows [start, stop) that this rank has; None where it has no whole rows.

    Each dimension of the mesh, in order, cuts what the ones before it left as `torch.chunk` does.
    """
    start, stop = 0, tensor.shape[0] if tensor.ndim else 1
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return None
    for dimension, placement in enumerate(tensor.placements):
        if isinstance(placement, Replicate):
            continue
        # Not isinstance: a strided shard is a Shard whose rows lie elsewhere.
        if type(placement) is not Shard or placement.dim != 0:
            return None
        size = -(-(stop - start) // tensor.device_mesh.size(dimension))
        start = min(start + coordinate[dimension] * size, stop)
        stop = min(start + size, stop)
    return start, stop


def fill(tensor: torch.Tensor, whole: torch.Tensor) -> None:
    """Give a tensor, or this rank's part of one, the values of `whole`; a collective call for
    placements other than rows."""
    with torch.no_grad():
        if not isinstance(tensor, DTensor):
            tensor.copy_(whole)
            return
        rows = rows_of(tensor)
        local = tensor.to_local()
        if rows is not None:
            local.copy_(whole[slice(*rows)] if tensor.ndim else whole)
            return
        from torch.distributed.tensor import distribute_tensor

        given = whole.to(local.device)
        local.copy_(distribute_tensor(given, tensor.device_mesh, tensor.placements).to_local())


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().view(-1)


def same_here(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are one, as far as this rank has them."""
    if one is other:
        return True
    here = [t.to_local() if isinstance(t, DTensor) else t for t in (one, other)]
    return here[0].shape == here[1].shape and same_bits(here[0].detach(), here[1].detach())
