"""The arithmetic of updates of small float32 tensors, compiled when it is first used.

Each operation is rounded on its own, as numpy and torch round it: nothing is fused or reordered. A
test compares the bits with those of `arithmetic`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger.tensors.compiling import compiled_for_few


@compiled_for_few
def step(moved: NDArray[np.float32], operand: NDArray[Any], rate: float, additive: bool) -> bool:
    """Write w + r·u, or w·(1 + r·u), over the w; whether all of it is finite.

    Both are contiguous and equally long; the operand, float32 or float64, and the rate are rounded
    to float32 first.
    """
    scale, one, zero = np.float32(rate), np.float32(1), np.float32(0)
    finite = True
    for entry in range(moved.size):
        change = np.float32(np.float32(operand[entry]) * scale)
        if additive:
            new = np.float32(moved[entry] + change)
        else:
            new = np.float32(moved[entry] * np.float32(change + one))
        moved[entry] = new
        finite &= new - new == zero
    return finite


@compiled_for_few
def steps(
    moved: NDArray[np.float32],
    operands: NDArray[Any],
    rates: NDArray[np.float64],
    additive: NDArray[np.bool_],
) -> bool:
    """`step` by one row of the operands after the other; whether all of it is finite then."""
    finite = False
    for number in range(len(operands)):
        finite = step(moved, operands[number], rates[number], additive[number])
    return finite
