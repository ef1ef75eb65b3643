"""Low-rank changes: stored as factors, applied by arithmetic that every machine does alike.

A change of a matrix by `a @ b`, a of shape [rows, rank] and b [rank, columns], takes a small
fraction of the bytes of its bit difference. It is applied rank by rank: one product and one sum an
element, each rounded on its own, in float32 (float64 for float64 tensors), and one rounding to the
stored dtype at the end. IEEE 754 fixes every one of these results, so the bits are the same on any
CPU or GPU; fused operations and matrix products would not be. It is the one change that cannot be
undone from what is stored: an earlier state is reached from a snapshot instead.

Stored (form `factors.1`): u32 rank, u8 bytes an element (4 or 8), then for each rank its column of
`a` and its row of `b`, each as a `codecs.streams` stream of little-endian floats. A tensor of more
than two dimensions is seen as [first dimension, all the others].
"""

from dataclasses import dataclass

import numpy as np
import torch

from weightledger.ledger.codecs.streams import Reader, stream, u32
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.tensors.spec import TensorSpec

# Rows that are worked on at a time, so that they stay in cache for all ranks.
_BLOCK_ELEMENTS = 1 << 16


@dataclass(frozen=True, slots=True)
class Factors:
    """Contiguous CPU factors of one change: `a` [rank, rows], transposed, and `b` [rank, columns].

    Their dtype is what `working_dtype` gives for the tensor.
    """

    a: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


def working_dtype(spec: TensorSpec) -> torch.dtype:
    """The dtype in which factors of a tensor are kept and applied."""
    return torch.float64 if spec.dtype == "float64" else torch.float32


def matrix_shape(spec: TensorSpec) -> tuple[int, int]:
    """The (rows, columns) as which a tensor of two or more dimensions is seen."""
    rows = spec.shape[0]
    return rows, spec.numel // rows if rows else 0


def apply_factors(tensor: torch.Tensor, factors: Factors, spec: TensorSpec) -> None:
    """Add the product of the factors to a contiguous tensor in place, on its device."""
    rows, columns = matrix_shape(spec)
    if not rows or not columns:
        return
    flat = tensor.detach().view(rows, columns)
    a, b = factors.a.to(tensor.device), factors.b.to(tensor.device)
    step = max(1, _BLOCK_ELEMENTS // columns)
    for start in range(0, rows, step):
        block = flat[start : start + step]
        sums = block.to(a.dtype)
        if sums.data_ptr() == block.data_ptr():
            sums = block.clone()
        for rank in range(factors.rank):
            sums.add_(torch.mul(a[rank, start : start + step, None], b[rank, None]))
        block.copy_(sums)


def encode(factors: Factors) -> bytes:
    """The factors as they are stored."""
    parts = [u32(factors.rank), bytes([factors.a.itemsize])]
    for rank in range(factors.rank):
        parts += [_floats(factors.a[rank]), _floats(factors.b[rank])]
    return b"".join(parts)


def decode(data: bytes | memoryview, spec: TensorSpec) -> Factors:
    """The factors of a change of this tensor; CorruptLedger when the bytes are none."""
    reader = Reader(data)
    rank, itemsize = reader.u32(), reader.u8()
    dtype = working_dtype(spec)
    if len(spec.shape) < 2 or spec.element.kind != "float" or itemsize != dtype.itemsize:
        raise CorruptLedger(f"{itemsize}-byte factors do not fit {spec.dtype} {spec.shape}")
    rows, columns = matrix_shape(spec)
    if rank > min(rows, columns):
        raise CorruptLedger(f"factors of rank {rank} for a tensor of shape {spec.shape}")
    a = torch.empty((rank, rows), dtype=dtype)
    b = torch.empty((rank, columns), dtype=dtype)
    for number in range(rank):
        for part in (a[number], b[number]):
            part.numpy().view(np.uint8)[:] = reader.stream(part.nbytes)
    reader.end()
    return Factors(a, b)


def _floats(values: torch.Tensor) -> bytes:
    return stream(values.numpy().view(np.uint8))
