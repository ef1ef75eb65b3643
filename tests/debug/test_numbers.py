"""How two tensors differ: every dtype, every value, against arithmetic done the slow way."""

import math
from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightledger.ledger.debug import numbers
from weightledger.ledger.debug.numbers import Numbers, compare
from weightledger.ledger.debug.rank import AUTO_WORK, effective_rank
from weightledger.ledger.tensors.lanes import TORCH_DTYPES, lanes, spec_of
from weightledger.ledger.tensors.spec import DTYPES

NAN, INF = math.nan, math.inf


def of(before: torch.Tensor, after: torch.Tensor) -> Numbers:
    return compare(spec_of("t", before), lanes(before), lanes(after))


def rank(before: torch.Tensor, after: torch.Tensor, which="auto"):
    return effective_rank(spec_of("t", before), lanes(before), lanes(after), which)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_has_an_answer(dtype: str) -> None:
    """Compared with exact fractions of the values that torch reads from the same bits."""
    random = torch.Generator().manual_seed(3)
    itemsize = DTYPES[dtype].itemsize
    bits = torch.randint(0, 2 if dtype == "bool" else 256, (2, 400 * itemsize), generator=random)
    pair = bits.to(torch.uint8).view(2, -1)
    before, after = (side.clone().view(TORCH_DTYPES[dtype]) for side in pair)
    after[:100] = before[:100]
    some = of(before, after)
    assert (some.elements, some.first) == (400, _first_difference(before, after))
    old, new = _plain(before), _plain(after)
    finite = [all(map(math.isfinite, (*a, *b))) for a, b in zip(old, new, strict=True)]
    assert some.not_finite == finite.count(False)
    sizes = [
        _root(sum((Fraction(y) - Fraction(x)) ** 2 for x, y in zip(a, b, strict=True)))
        for a, b, fine in zip(old, new, finite, strict=True)
        if fine
    ]
    assert some.largest == pytest.approx(float(max(sizes)), rel=1e-12)
    total = sum(Fraction(size) for size in sizes)
    assert _near(some.total, total)
    assert _near(some.change_norm, _root(sum(Fraction(size) ** 2 for size in sizes)))
    kept = [(a, b) for a, b, fine in zip(old, new, finite, strict=True) if fine]
    norm = _root(sum(Fraction(x) ** 2 for a, _ in kept for x in a))
    assert _near(some.norm_before, norm)
    assert -1 <= (some.cosine or 0) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_changes_are_told_as_if_all_were_read(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over more than a tile, with what is not finite far from what changed, and nearly all gone."""
    element = DTYPES[dtype]
    drawn = np.random.default_rng(5)
    count = 400_000
    values = drawn.normal(size=count) * 40
    if element.kind == "boolean":
        values = values > 0
    before = torch.from_numpy(values).to(TORCH_DTYPES[dtype])
    after = before.clone()
    at = torch.from_numpy(drawn.choice(count // 2, 50, replace=False))
    after.view(torch.uint8).view(count, -1)[at, 0] ^= 1
    gone = before.clone()
    if dtype in ("float32", "float64", "bfloat16"):
        gone[7] = 1e18
    without = gone.clone()
    without[7] = 0
    if element.kind == "float":
        after[-1] = before[-1] = NAN
    for old, new in ((before, after), (after, before), (gone, without)):
        some = of(old, new)
        with monkeypatch.context() as patch:
            patch.setattr(numbers, "_FEW", count)
            every = of(old, new)
        for field in fields(Numbers):
            one, other = getattr(some, field.name), getattr(every, field.name)
            assert one == (pytest.approx(other, rel=1e-13) if isinstance(other, float) else other)


def _plain(tensor: torch.Tensor) -> list[tuple[float | int, ...]]:
    if tensor.is_complex():
        return [(value.real, value.imag) for value in tensor.tolist()]
    if tensor.dtype.itemsize == 1 and tensor.is_floating_point():
        tensor = tensor.float()
    return [(value,) for value in tensor.tolist()]


def _first_difference(before: torch.Tensor, after: torch.Tensor) -> int:
    each = len(lanes(before)) // before.numel()
    return int(np.flatnonzero(lanes(before) != lanes(after))[0]) // each


def _root(value: Fraction | int) -> Fraction:
    """A square root, to many digits whatever its size."""
    scale = 10**400
    value = Fraction(value)
    return Fraction(math.isqrt(value.numerator * scale**2 // value.denominator), scale)


def _near(value: float, exact: Fraction) -> bool:
    if math.isinf(value):
        return exact > Fraction(1.7976931348623157e308)
    return abs(Fraction(value) - exact) <= exact * Fraction(1, 10**10)


def test_nothing_is_undefined() -> None:
    """NaN and infinity are counted, not measured; a NaN with other bits is another one."""
    before = torch.tensor([1.0, NAN, INF, 2.0, INF, -0.0])
    after = torch.tensor([3.0, NAN, INF, NAN, -INF, 0.0])
    some = of(before, after)
    assert (some.changed, some.not_finite, some.lost) == (4, 4, 1)
    assert (some.largest, some.total, some.change_norm, some.norm_before) == (2, 2, 2, 1)
    other = before.clone().view(torch.int32)
    other[1] ^= 1
    assert of(before, other.view(torch.float32)).changed == 1


def test_no_norm_before_is_no_ratio() -> None:
    some = of(torch.zeros(3), torch.ones(3))
    assert (some.relative, some.cosine, some.change_norm) == (None, None, math.sqrt(3))
    same = of(torch.ones(3), torch.ones(3))
    assert (same.changed, same.first, same.mean, same.relative, same.cosine) == (
        0,
        None,
        None,
        0,
        1,
    )
    empty = of(torch.ones(0), torch.ones(0))
    assert (empty.elements, empty.changed, empty.relative) == (0, 0, None)


def test_large_integers_are_subtracted_before_they_are_rounded() -> None:
    big = 2**60
    some = of(torch.tensor([big, -(2**63)]), torch.tensor([big + 1, 2**63 - 1]))
    assert (some.changed, some.largest) == (2, float(2**64 - 1))
    assert of(torch.tensor([big]), torch.tensor([big + 1])).largest == 1


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1.7e308, 5e-324])
def test_squares_that_leave_float64(scale: float) -> None:
    before = torch.tensor([scale, scale], dtype=torch.float64)
    some = of(before, -before)
    assert some.cosine == pytest.approx(-1)
    assert some.norm_before == pytest.approx(math.sqrt(2) * scale, rel=1e-9, abs=5e-324) or (
        math.isinf(some.norm_before) and scale > 1e308
    )
    assert of(torch.zeros(1).double(), before[:1] * 0 + 1e-200).change_norm == 1e-200
    mixed = of(torch.tensor([1e-200], dtype=torch.float64), torch.ones(1).double())
    assert (mixed.norm_before, mixed.norm_after) == (1e-200, 1)
    assert mixed.cosine == 1


@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.data())
def test_what_did_not_change_is_not_counted(values: list[float], data: st.DataObject) -> None:
    before = torch.tensor(values)
    at = data.draw(st.integers(0, len(values) - 1))
    after = before.clone()
    after[at] = data.draw(st.floats(width=32))
    some = of(before, after)
    differs = lanes(before)[at] != lanes(after)[at]
    assert (some.changed, some.first) == ((1, at) if differs else (0, None))


def test_long_tensors_are_cut_where_it_makes_no_difference() -> None:
    random = torch.Generator().manual_seed(1)
    before = torch.randn(100_003, generator=random)
    after = before.clone()
    after[70_001:] += torch.randn(30_002, generator=random)
    some = of(before, after)
    change = (after.double() - before.double()).abs()
    assert some.first == 70_001
    assert some.change_norm == pytest.approx(float(change.norm()), rel=1e-12)
    assert some.mean == pytest.approx(float(change.sum()) / some.changed, rel=1e-12)
    assert some.cosine == pytest.approx(
        float(torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=0))
    )


def test_one_element_is_told_as_it_is() -> None:
    for tensor, expected in (
        (torch.tensor([1.5]), 1.5),
        (torch.tensor([2**60 + 1]), 2**60 + 1),
        (torch.tensor([True]), True),
        (torch.tensor([1 + 2j]), [1.0, 2.0]),
        (torch.tensor([1.5]).bfloat16(), 1.5),
    ):
        assert numbers.number(spec_of("t", tensor), lanes(tensor), 0) == expected


# The effective rank


def test_the_effective_rank_of_known_changes() -> None:
    random = torch.Generator().manual_seed(2)
    zero = torch.zeros(30, 20)
    outer = torch.outer(torch.arange(30.0), torch.arange(20.0))
    assert rank(zero, outer)[0] == pytest.approx(1, abs=1e-6)
    assert rank(torch.zeros(8, 8), torch.eye(8))[0] == pytest.approx(8)
    # By the definition: exp of the entropy of 3/4 and 1/4.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert rank(torch.zeros(2, 3), torch.tensor([[3.0, 0, 0], [0, 1, 0]]))[0] == pytest.approx(
        expected
    )
    low = torch.randn(30, 3, generator=random) @ torch.randn(3, 20, generator=random)
    assert 1 < rank(zero, low)[0] <= 3 + 1e-4
    kernel = torch.randn(4, 3, 2, 2, generator=random)
    flat = rank(torch.zeros(4, 12), kernel.reshape(4, 12))
    assert rank(torch.zeros_like(kernel), kernel) == flat
    assert rank(torch.zeros(2, 2).cfloat(), torch.eye(2).cfloat())[0] == pytest.approx(2)


def test_where_there_is_no_effective_rank_it_says_why() -> None:
    side = math.ceil(AUTO_WORK ** (1 / 3)) + 1
    large = torch.eye(side)
    value, note = rank(torch.zeros(side, side), large)
    assert value is None
    assert f"{side} × {side}" in note
    assert rank(torch.zeros(side, side), large, "all")[0] == pytest.approx(side)
    # What counts is what changed, not how large the matrix is.
    few = torch.zeros(side, side)
    few[7, 9] = 1
    assert rank(torch.zeros(side, side), few) == (1, None)
    bad = torch.eye(2)
    bad[0, 0] = NAN
    assert "not finite" in rank(torch.zeros(2, 2), bad)[1]
    for before in (torch.zeros(4), torch.zeros(2, 2).int(), torch.zeros(0, 3)):
        assert rank(before, before + 1) == (None, None)
    assert rank(torch.zeros(2, 2), -torch.zeros(2, 2)) == (None, None)
    assert rank(torch.zeros(2, 2), torch.eye(2), "none") == (None, None)
