"""What an update computes, and what is refused before anything happens."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.tensors.lanes import lanes, torch_dtype
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.arithmetic import NonFiniteResult, compute
from weightledger.ledger.writing.operands import flattened, leaf_types
from weightledger.ledger.writing.requests import IncrementalUpdateRequest, facts_of, validate
from weightledger.ledger.writing.update_commands import batch_command

SPECS = {
    "w": TensorSpec("w", "float32", (3, 4)),
    "h": TensorSpec("h", "float16", (3,)),
    "b": TensorSpec("b", "bfloat16", (4,)),
    "d": TensorSpec("d", "float64", (2,)),
    "i": TensorSpec("i", "int8", (2, 2)),
    "flag": TensorSpec("flag", "bool", (3,)),
    "s": TensorSpec("s", "float32", ()),
    "none": TensorSpec("none", "float32", (0, 4)),
}


def result(name: str, before: torch.Tensor, data: object, **fields: object) -> torch.Tensor:
    update = validate(IncrementalUpdateRequest(name, data, **fields), SPECS)
    return compute(update, before)


def test_the_three_update_types() -> None:
    w, u = torch.randn(3, 4), torch.randn(3, 4)
    rate = torch.tensor(0.1)
    assert torch.equal(result("w", w, u, learning_rate=0.1), w + u * rate)
    assert torch.equal(
        result("w", w, u, learning_rate=0.1, update_type="multiplicative"), w * (1 + u * rate)
    )
    assert torch.equal(result("w", w, u, update_type="replace"), u)


@pytest.mark.parametrize("name", ["h", "b"])
def test_half_types_compute_in_single_precision_and_round_once(name: str) -> None:
    dtype = torch_dtype(SPECS[name])
    before, u = torch.randn(SPECS[name].shape).to(dtype), torch.randn(SPECS[name].shape)
    expected = (before.float() + u * torch.tensor(0.3)).to(dtype)
    assert torch.equal(result(name, before, u, learning_rate=0.3), expected)


def test_data_may_have_the_shape_or_be_flat_or_be_one_number() -> None:
    w = torch.zeros(3, 4)
    rows = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12.5]]
    flat = [value for row in rows for value in row]
    expected = torch.tensor(rows)
    for data in (rows, flat, np.array(rows), torch.tensor(rows, dtype=torch.float64)):
        assert torch.equal(result("w", w, data, update_type="replace"), expected)
    assert torch.equal(result("w", w, 2, update_type="replace"), torch.full((3, 4), 2.0))
    assert torch.equal(result("s", torch.tensor(1.0), 2, learning_rate=1), torch.tensor(3.0))
    assert result("none", torch.empty(0, 4), 1.0).shape == (0, 4)


def test_a_transposed_tensor_is_updated_where_it_is() -> None:
    w = torch.arange(12.0).reshape(4, 3).T
    u = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(result("w", w, u, learning_rate=1), w + u)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([1.0, 2.0, 3.0], "has shape \\(3, 4\\), got 3 values"),
        ([[1.0] * 3] * 4, "has shape \\(3, 4\\), got shape \\(4, 3\\)"),
        ([[1.0], [1.0, 2.0]], "ragged"),
        (float("nan"), "must be finite"),
        ([math.inf] * 12, "must be finite"),
        (1e39, "overflows float32"),
        ("1.0", "must be numbers, got values of type str"),
        (True, "must be numbers, got values of type bool"),
        ([1.0] * 11 + [False], "must be numbers, got values of type bool"),
        (None, "must be numbers, got values of type NoneType"),
        ({"a": 1}, "must be numbers, got values of type dict"),
        (torch.ones(3, 4, dtype=torch.bool), "booleans"),
        (torch.ones(3, 4, dtype=torch.complex64), "complex"),
        (np.array(["a"]), "must be numbers"),
        (10**400, "overflows float32"),
    ],
)
def test_data_that_does_not_fit_is_refused(data: object, expected: str) -> None:
    with pytest.raises(InvalidRequest, match=expected) as refused:
        result("w", torch.zeros(3, 4), data)
    assert refused.value.param == "update_data"


@pytest.mark.parametrize("rate", [-0.1, 1.0001, 10**400, float("nan"), True, "0.1", None])
def test_learning_rate_is_a_number_from_0_to_1(rate: object) -> None:
    with pytest.raises(InvalidRequest, match=r"learning_rate must be") as refused:
        validate(IncrementalUpdateRequest("w", 1.0, learning_rate=rate), SPECS)
    assert refused.value.param == "learning_rate"


def test_an_unknown_parameter_and_an_unknown_type_are_refused() -> None:
    with pytest.raises(NotFound, match="'nope' not found"):
        validate(IncrementalUpdateRequest("nope", 1.0), SPECS)
    with pytest.raises(InvalidRequest, match="additive, multiplicative, replace"):
        validate(IncrementalUpdateRequest("w", 1.0, update_type="subtract"), SPECS)


def test_metadata_is_a_json_object() -> None:
    with pytest.raises(InvalidRequest, match="metadata"):
        validate(IncrementalUpdateRequest("w", 1.0, metadata=[1]), SPECS)
    with pytest.raises(InvalidRequest, match="canonical JSON"):
        validate(IncrementalUpdateRequest("w", 1.0, metadata={"x": float("nan")}), SPECS)


def test_other_dtypes_are_replaced_only_and_exactly() -> None:
    before = torch.zeros(2, 2, dtype=torch.int8)
    with pytest.raises(InvalidRequest, match="replace only"):
        result("i", before, 1)
    new = result("i", before, [[1, -2], [127, -128]], update_type="replace")
    assert new.tolist() == [[1, -2], [127, -128]]
    assert new.dtype == torch.int8
    for bad in (128, 1.5, [[0.0, 0.0], [0.0, 1e300]]):
        with pytest.raises(InvalidRequest, match=r"(fit|overflows) int8"):
            result("i", before, bad, update_type="replace")
    flags = torch.zeros(3, dtype=torch.bool)
    assert result("flag", flags, [True, False, True], update_type="replace").tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("float8_e4m3fn", 1e6),
        ("float8_e5m2", torch.tensor([1e6])),
        ("float8_e8m0fnu", -1.0),
        ("float8_e8m0fnu", 0.0),
        ("uint64", -1),
        ("uint64", torch.tensor([-1])),
        ("uint8", 256),
        ("int64", [2**53 + 2, 1.0]),
        ("int64", 2**63),
        ("int64", torch.tensor([2**63], dtype=torch.uint64)),
        ("int32", torch.tensor([2**31])),
    ],
)
def test_no_value_is_replaced_by_another(dtype: str, data: object) -> None:
    numel = len(data) if isinstance(data, list) else 1
    specs = {"x": TensorSpec("x", dtype, (numel,))}
    update = IncrementalUpdateRequest("x", data, update_type="replace")
    with pytest.raises(InvalidRequest, match=f"(fit|overflows) {dtype}"):
        compute(validate(update, specs), torch.zeros(numel).to(torch_dtype(specs["x"])))


@pytest.mark.parametrize(
    ("dtype", "halfway", "goes_down"),
    [
        ("float32", (2 - 2**-24) * 2.0**127, False),
        ("bfloat16", (2 - 2**-8) * 2.0**127, False),
        ("float16", 65520.0, False),
        ("float8_e5m2", 61440.0, False),
        ("float8_e5m2fnuz", 61440.0, False),
        ("float8_e4m3fnuz", 248.0, False),
        ("float8_e4m3fn", 464.0, True),
        ("float8_e8m0fnu", 1.5 * 2.0**127, False),
    ],
)
def test_just_above_the_largest_value_it_is_rounded_as_everywhere(
    dtype: str, halfway: float, goes_down: bool
) -> None:
    """To the nearest, ties to even, and refused if that is more than the largest: in every dtype.
    What casting to e4m3fn clips was refused from the largest value on."""
    spec = TensorSpec("x", dtype, (1,))
    largest = torch.finfo(torch_dtype(spec)).max

    def replaced(value: float) -> float:
        update = IncrementalUpdateRequest("x", [value], update_type="replace")
        new = compute(validate(update, {"x": spec}), torch.ones(1).to(torch_dtype(spec)))
        return new.to(torch.float64).item()

    signs = (1,) if dtype == "float8_e8m0fnu" else (1, -1)
    for sign in signs:
        for value in (largest, math.nextafter(halfway, 0), *[halfway] * goes_down):
            assert replaced(sign * value) == sign * largest
        for value in (math.nextafter(halfway, math.inf), *[halfway] * (not goes_down)):
            with pytest.raises(InvalidRequest, match=f"overflows {dtype}"):
                replaced(sign * value)


def test_large_whole_numbers_are_kept() -> None:
    specs = {"x": TensorSpec("x", "uint64", (2,)), "y": TensorSpec("y", "int64", (1,))}
    update = IncrementalUpdateRequest("x", [2**63, 2**64 - 1], update_type="replace")
    new = compute(validate(update, specs), torch.zeros(2, dtype=torch.uint64))
    assert new.tolist() == [2**63, 2**64 - 1]
    update = IncrementalUpdateRequest("y", [2**53 + 1], update_type="replace")
    assert compute(validate(update, specs), torch.zeros(1, dtype=torch.int64)).item() == 2**53 + 1


def test_infinity_does_not_become_nan() -> None:
    before = torch.tensor([1.0, -math.inf], dtype=torch.float64)
    with pytest.raises(NonFiniteResult, match="1 value"):
        result("d", before, -1.0, learning_rate=1, update_type="multiplicative")


def test_a_replacement_that_overflows_the_dtype_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="overflows float16"):
        result("h", torch.zeros(3, dtype=torch.float16), 70_000.0, update_type="replace")


def test_a_result_that_overflows_is_not_the_callers_mistake() -> None:
    before = torch.full((3,), 60_000.0, dtype=torch.float16)
    with pytest.raises(NonFiniteResult, match="3 value"):
        result("h", before, 60_000.0, learning_rate=1)


def test_values_that_were_not_finite_before_may_stay() -> None:
    before = torch.tensor([1.0, -math.inf], dtype=torch.float64)
    assert result("d", before, 1.0, learning_rate=1).tolist() == [2.0, -math.inf]


def test_the_request_digest_tells_requests_apart() -> None:
    def digest(**fields: object) -> bytes:
        given = {"parameter_name": "w", "update_data": 1.0, **fields}
        return validate(IncrementalUpdateRequest(**given), SPECS).digest

    base = digest()
    assert base == digest(update_data=1)
    others = [
        digest(update_data=2.0),
        digest(update_data=[1.0] * 12),
        digest(learning_rate=0.02),
        digest(update_type="replace"),
        digest(metadata={"a": 1}),
        digest(parameter_name="s"),
    ]
    assert len({base, *others}) == 7


def test_updates_together_say_what_each_says_alone() -> None:
    asked = (
        IncrementalUpdateRequest("w", torch.randn(3, 4)),
        IncrementalUpdateRequest("none", torch.empty(0, 4)),
        IncrementalUpdateRequest("w", [2.0, 1.0], indices=[7, 3], learning_rate=1e-9),
        IncrementalUpdateRequest("w", factors={"a": torch.ones(3, 1), "b": torch.ones(1, 4)}),
        IncrementalUpdateRequest("i", 3, update_type="replace"),
    )
    together = facts_of([validate(one, SPECS) for one in asked])
    assert together == [validate(one, SPECS).facts for one in asked]
    assert len({str(facts["operand"]) for facts in together}) == len(asked)


ODD_BITS = np.array([0x7FC00001, 0x80000000, 1, 0x7F800001] * 3, np.uint32).view(np.float32)
ALIKE: dict[str, list[torch.Tensor]] = {
    "as they stand": [torch.randn(3, 4) for _ in range(3)],
    "flat": [torch.randn(12) for _ in range(3)],
    "doubles": [torch.randn(3, 4, dtype=torch.float64) for _ in range(3)],
    "transposed": [torch.randn(4, 3).T, torch.randn(3, 4)],
    "lazily negated": [torch.randn(3, 4, dtype=torch.complex64).conj().imag, torch.randn(3, 4)],
    "odd bits": [torch.from_numpy(ODD_BITS.copy()), torch.from_numpy(ODD_BITS[::-1].copy())],
}
UNALIKE: dict[str, list[object]] = {
    "one": [torch.randn(3, 4)],
    "a number": [torch.tensor(1.0), torch.tensor(2.0)],
    "another dtype": [torch.randn(3, 4), torch.randn(3, 4).double()],
    "whole numbers": [torch.ones(3, 4, dtype=torch.int32)] * 2,
    "another shape": [torch.randn(3, 4), torch.randn(12)],
    "trained": [torch.randn(3, 4), torch.randn(3, 4, requires_grad=True)],
    "a parameter": [torch.randn(3, 4), torch.nn.Parameter(torch.randn(3, 4))],
    "numpy's": [torch.randn(3, 4), np.ones((3, 4), np.float32)],
    "lists": [[1.0] * 12, [2.0] * 12],
}


@pytest.mark.parametrize("name", [*ALIKE, *UNALIKE])
def test_a_batch_is_what_each_of_its_updates_is_alone(name: str) -> None:
    sent = {**ALIKE, **UNALIKE}[name]
    requests = [IncrementalUpdateRequest("w", data, 0.5) for data in sent]
    rows = flattened(sent)
    assert all((row is not None) == (name in ALIKE) for row in rows)
    batch = batch_command(requests, SPECS, {})
    alone = [validate(request, SPECS) for request in requests]
    assert batch.facts["updates"] == [one.facts for one in alone]
    for one, other in zip(batch.updates, alone, strict=True):
        assert one.operand.dtype == other.operand.dtype
        assert one.operand.shape == other.operand.shape
        assert one.operand.resolve_neg().numpy().tobytes() == lanes(other.operand).tobytes()


def test_what_a_batch_was_given_may_be_changed_afterwards() -> None:
    sent = [torch.ones(3, 4), torch.ones(3, 4)]
    requests = [IncrementalUpdateRequest("w", data, 0.5) for data in sent]
    batch = batch_command(requests, SPECS, {})
    sent[0].zero_()
    assert batch.updates[0].operand.tolist() == [1.0] * 12


@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(4, 3),
        torch.ones(13),
        torch.ones(3, 4, device="meta"),
        torch.ones(3, 4).to_sparse(),
        torch.ones(3, 4, dtype=torch.complex64),
        torch.ones(3, 4, dtype=torch.bool),
    ],
)
def test_a_batch_refuses_what_is_refused_alone(wrong: torch.Tensor) -> None:
    with pytest.raises(InvalidRequest) as alone:
        validate(IncrementalUpdateRequest("w", wrong), SPECS)
    for sent in ([wrong, wrong], [torch.ones(3, 4), wrong]):
        requests = [IncrementalUpdateRequest("w", data) for data in sent]
        with pytest.raises(InvalidRequest) as together:
            batch_command(requests, SPECS, {})
        assert str(together.value) == str(alone.value)


@pytest.mark.parametrize("rate", [0, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("update_type", ["additive", "multiplicative"])
def test_an_operand_that_is_not_finite_is_refused_whatever_it_meets(
    rate: float, bad: float, update_type: str
) -> None:
    for name, before in (("d", torch.zeros(2, dtype=torch.float64)), ("none", torch.empty(0, 4))):
        with pytest.raises(InvalidRequest, match="must be finite"):
            result(name, before, bad, learning_rate=rate, update_type=update_type)


# A rate of nothing, and numpy's numbers


FORMS = {
    "dense": {"update_data": [1.0, -1.0, 0.0, 3.0]},
    "number": {"update_data": 5.0},
    "sparse": {"update_data": [1.0, -2.0], "indices": [0, 2]},
    "factors": {"factors": {"a": [[1.0], [2.0]], "b": [[0.5, -0.5]]}},
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("update_type", ["additive", "multiplicative"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rate", [0, 0.0, 1e-60])
def test_a_rate_of_nothing_changes_no_bit(
    dtype: str, update_type: str, form: str, rate: float
) -> None:
    """-0.0 + 0.0 is 0.0, which are other bits."""
    if (form == "factors" and update_type == "multiplicative") or (rate and dtype == "float64"):
        return
    if form == "factors" and rate:
        rate = 0.0
    spec = TensorSpec("p", dtype, (2, 2))
    before = torch.tensor([[-0.0, 1.0], [-0.0, float("nan")]]).to(torch_dtype(spec))
    request = IncrementalUpdateRequest(
        "p", learning_rate=rate, update_type=update_type, **FORMS[form]
    )
    after = compute(validate(request, {"p": spec}), before)
    lane = {2: torch.int16, 4: torch.int32, 8: torch.int64}[before.itemsize]
    assert torch.equal(after.view(lane), before.view(lane))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_rate_of_nothing_takes_no_operand_that_is_not_finite(bad: float) -> None:
    request = IncrementalUpdateRequest("w", bad, 0.0)
    with pytest.raises(InvalidRequest, match="must be finite"):
        compute(validate(request, SPECS), torch.zeros(3, 4))


@pytest.mark.parametrize(
    "rate", [np.float32(0.5), np.float64(0.5), np.float16(0.5), np.int64(1), np.uint8(1)]
)
def test_numpys_numbers_are_numbers(rate: object) -> None:
    update = validate(IncrementalUpdateRequest("w", np.float32(2.0), rate), SPECS)
    assert type(update.learning_rate) is float
    listed = [[np.float32(1.0), 2, np.int8(3), np.float64(4.0)]] * 3
    assert validate(IncrementalUpdateRequest("w", listed), SPECS).operand.dtype == torch.float64
    whole = validate(
        IncrementalUpdateRequest("i", [[np.int64(1), 2], [3, 4]], update_type="replace"), SPECS
    )
    assert whole.operand.dtype == torch.int64
    sparse = validate(IncrementalUpdateRequest("w", 1.0, indices=[np.int64(3), 1]), SPECS)
    assert sparse.indices.tolist() == [1, 3]


@pytest.mark.parametrize("rate", [np.float32(1.5), np.float32("nan"), np.bool_(True), np.int64(-1)])
def test_numpys_numbers_have_the_same_bounds(rate: object) -> None:
    with pytest.raises(InvalidRequest, match="learning_rate must be a number in"):
        validate(IncrementalUpdateRequest("w", 1.0, rate), SPECS)
    with pytest.raises(InvalidRequest, match="must be numbers, got values of type bool"):
        validate(IncrementalUpdateRequest("w", [[np.bool_(True)] * 4] * 3), SPECS)


def test_numpys_arrays_of_either_byte_order_are_numbers() -> None:
    before, values = torch.zeros(3, 4), np.arange(12.0).reshape(3, 4)
    for order in "<>":
        sent = values.astype(f"{order}f8")
        assert result("w", before, sent, learning_rate=1).tolist() == values.tolist()
    sent = np.arange(4, dtype=">i2").astype(">i2").reshape(2, 2)
    moved = result("i", torch.zeros(2, 2, dtype=torch.int8), sent, update_type="replace")
    assert moved.tolist() == [[0, 1], [2, 3]]


def test_a_masked_array_is_not_taken_without_its_mask() -> None:
    values = np.ma.masked_array(np.ones((3, 4)), mask=np.eye(3, 4))
    with pytest.raises(InvalidRequest, match="a masked array"):
        result("w", torch.zeros(3, 4), values)
    whole = np.ma.masked_array(np.ones((3, 4)), mask=False)
    assert result("w", torch.zeros(3, 4), whole, learning_rate=1).tolist() == [[1.0] * 4] * 3


leaves = st.sampled_from([1, 2.0, True, None, "x", np.float32(1), np.int8(2), np.bool_(True), {}])
nested = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
)


@settings(max_examples=200, derandomize=True)
@given(nested)
def test_the_types_of_nested_numbers_are_those_of_each(data: object) -> None:
    def each(value: object) -> set[type]:
        if isinstance(value, list | tuple):
            return {kind for one in value for kind in each(one)}
        plain = {np.float32: float, np.int8: int}
        return {plain.get(type(value), type(value))}

    assert leaf_types(data) == each(data)
