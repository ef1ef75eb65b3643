"""The effective rank of a change: how many directions it really has.

Roy and Vetterli, "The effective rank: a measure of effective dimensionality" (EUSIPCO 2007): the
exponential of the entropy of the singular values divided by their sum. It is 1 for an outer
product, r for r equal directions, and no more than the rank. A tensor of more than two dimensions
is taken as a matrix of its first dimension by all others.
"""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.debug.numbers import values
from weightledger.ledger.tensors.spec import Lanes, TensorSpec

Which = Literal["auto", "all", "none"]

AUTO_WORK = 1 << 26
"""Rows times columns times the smaller of the two, up to which "auto" works a rank out: a square
matrix of 406, some 50 ms."""


def effective_rank(
    spec: TensorSpec, before: Lanes, after: Lanes, which: Which = "auto"
) -> tuple[float | None, str | None]:
    """The effective rank of after − before, and why there is none where there is none.

    What is no matrix, or did not change in value, has neither.
    """
    if len(spec.shape) < 2 or not spec.numel or which == "none":
        return None, None
    if spec.element.kind not in ("float", "complex"):
        return None, None
    rows = spec.shape[0]
    # Rows and columns that did not change have no part in it.
    old, new = (side.reshape(rows, -1, spec.element.lanes) for side in (before, after))
    # Along an axis of one, numpy's reduction costs ten times the comparison.
    marks = (old != new).any(axis=2) if spec.element.lanes > 1 else (old != new)[:, :, 0]
    at_rows, at_columns = marks.any(axis=1), marks.any(axis=0)
    m, n = int(at_rows.sum()), int(at_columns.sum())
    if not m or not n:
        return None, None
    if which == "auto" and m * n * min(m, n) > AUTO_WORK:
        return None, f"not worked out: {m} × {n} changed; ask for all ranks"
    part = np.ix_(at_rows, at_columns)
    with np.errstate(invalid="ignore", over="ignore"):
        change = _matrix(spec, new[part]) - _matrix(spec, old[part])
    if not np.isfinite(change).all():
        return None, "not defined: some of the change is not finite"
    singular = np.linalg.svd(change, compute_uv=False)
    if not singular[0]:
        return None, None
    weights = singular / singular[0]
    weights = weights[weights > 0]
    shares = weights / weights.sum()
    return math.exp(-float((shares * np.log(shares)).sum())), None


def _matrix(spec: TensorSpec, lanes: NDArray[Any]) -> NDArray[Any]:
    """Values of lanes [rows, columns, lanes each], as [rows, columns]."""
    flat = values(spec, np.ascontiguousarray(lanes).reshape(-1))
    whole = flat.view(np.complex128) if spec.element.lanes > 1 else flat
    return whole.reshape(lanes.shape[:2])
