"""Addresses in compiled loops: bytes that are there, and functions of C libraries."""

from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray  # type: ignore[attr-defined]
from numba.extending import intrinsic

from weightledger.ledger.tensors.compiling import compiled


def _pointer_at(_: Any, address: Any) -> Any:
    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return numba.types.voidptr(numba.int64), code


def _call_two(_: Any, function: Any, one: Any, two: Any) -> Any:
    return numba.int64(numba.int64, numba.int64, numba.int64), _calling(2)


def _call_five(_: Any, function: Any, one: Any, two: Any, three: Any, four: Any, five: Any) -> Any:
    return numba.int64(*[numba.int64] * 6), _calling(5)


def _call_seven(
    _: Any,
    function: Any,
    one: Any,
    two: Any,
    three: Any,
    four: Any,
    five: Any,
    six: Any,
    seven: Any,
) -> Any:
    return numba.int64(*[numba.int64] * 8), _calling(7)


def _calling(count: int) -> Any:
    """Code that calls the C function at an address with so many pointers or sizes."""

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word] * count).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], kind), arguments[1:])

    return code


_pointer: Any = intrinsic(_pointer_at)
called_with_two: Any = intrinsic(_call_two)
called_with_five: Any = intrinsic(_call_five)
called_with_seven: Any = intrinsic(_call_seven)


@compiled
def bytes_at(address: Any, size: Any) -> Any:
    return carray(_pointer(address), (size,), np.uint8)
