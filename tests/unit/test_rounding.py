"""Conversion to half types: the nearest value there is, found with exact fractions."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.tensors.rounding import rounded
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.arithmetic import compute
from weightledger.ledger.writing.requests import IncrementalUpdateRequest, validate

# Bits of precision, and the smallest and largest exponent of a normal number.
HALF = {torch.bfloat16: (8, -126, 127), torch.float16: (11, -14, 15)}
ABOVE_A_TIE = {
    torch.bfloat16: (1 + 2**-8 + 2**-40, 1 + 2**-7),
    torch.float16: (2049 + 2**-20, 2050),
}


def nearest(value: Fraction, dtype: torch.dtype) -> float:
    """`value` rounded to the nearest of a dtype, ties to even."""
    precision, smallest, largest = HALF[dtype]
    if not value:
        return 0.0
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    last = Fraction(2) ** (max(exponent, smallest) - precision + 1)
    result = round(size / last) * last  # round() takes ties to even
    if result >= Fraction(2) ** (largest + 1):
        return math.copysign(math.inf, value)
    return math.copysign(float(result), value)


def converted(value: float | int, of: torch.dtype, to: torch.dtype) -> float:
    return rounded(torch.tensor([value], dtype=of), to).double().item()


@pytest.mark.parametrize("dtype", HALF)
@given(
    at=st.integers(1, 2**11 - 1),
    exponent=st.integers(-160, 128),
    off=st.sampled_from([0.0, 2.0**-20, 2.0**-40, 2.0**-52]),
    side=st.sampled_from([1, -1]),
)
def test_float64_is_rounded_once(
    dtype: torch.dtype, at: int, exponent: int, off: float, side: int
) -> None:
    """Around ties of the narrow dtype, where rounding twice goes wrong."""
    value = math.ldexp(side * (at + 0.5) * (1 + off), exponent)
    assert converted(value, torch.float64, dtype) == nearest(Fraction(value), dtype)


@pytest.mark.parametrize("dtype", HALF)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_any_float64_is_the_nearest(dtype: torch.dtype, value: float) -> None:
    expected = nearest(Fraction(value), dtype)
    assert converted(value, torch.float64, dtype) == expected
    back = rounded(torch.tensor([value], dtype=torch.float64), dtype).double()
    assert math.copysign(1, back.item()) == math.copysign(1, value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@given(high=st.integers(-(2**23), 2**23 - 1), shift=st.integers(0, 40), low=st.integers(-1, 1))
def test_integers_are_rounded_once(dtype: torch.dtype, high: int, shift: int, low: int) -> None:
    limit = 2 ** (dtype.itemsize * 8 - 1)
    value = max(-limit, min((high << shift) + low, limit - 1))
    expected = nearest(Fraction(value), torch.bfloat16)
    assert converted(value, dtype, torch.bfloat16) == expected


def test_what_is_not_a_number_stays_so() -> None:
    odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0], dtype=torch.float64)
    for dtype in HALF:
        back = rounded(odd, dtype).double()
        assert back[0].isnan() and back[1:].tolist() == [math.inf, -math.inf, 0.0]
        assert math.copysign(1, back[3]) == -1


# What an update makes of it


def replaced(dtype: torch.dtype, data: object, **fields: object) -> list[float]:
    spec = TensorSpec("w", str(dtype).removeprefix("torch."), (1,))
    asked = IncrementalUpdateRequest("w", data, 1.0, "replace", **fields)
    return compute(validate(asked, {"w": spec}), torch.zeros(1, dtype=dtype)).double().tolist()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    "form",
    [
        lambda value: ([value], {}),
        lambda value: (value, {}),
        lambda value: (torch.tensor([value], dtype=torch.float64), {}),
        lambda value: (torch.tensor([value], dtype=torch.float64).numpy(), {}),
        lambda value: ([value], {"indices": [0]}),
        lambda value: (value, {"indices": [0]}),
    ],
    ids=["list", "number", "tensor", "array", "sparse", "sparse number"],
)
def test_replacing_rounds_once_in_every_form(dtype: torch.dtype, form) -> None:
    value, expected = ABOVE_A_TIE[dtype]
    data, fields = form(value)
    assert replaced(dtype, data, **fields) == [expected]


def test_a_value_overflows_only_when_the_nearest_does() -> None:
    assert replaced(torch.float16, [65520 - 2**-20]) == [65504.0]
    with pytest.raises(InvalidRequest, match="overflows float16"):
        replaced(torch.float16, [65520.0])
    greatest = torch.finfo(torch.bfloat16).max
    tie = greatest + 2.0**119
    assert replaced(torch.bfloat16, [tie * (1 - 2**-50)]) == [greatest]
    with pytest.raises(InvalidRequest, match="overflows bfloat16"):
        replaced(torch.bfloat16, [tie])
