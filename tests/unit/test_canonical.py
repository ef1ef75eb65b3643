"""Canonical JSON is the library's, byte for byte, whichever way it is written."""

import math
import struct

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events.canonical import canonical, is_canonical
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing.requests import IncrementalUpdateRequest, validate

FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(1e-7, 1e-4),
    st.floats(1e-4, 1e17),
    st.integers(0, 2**64 - 1)
    .map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
    .filter(math.isfinite),
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), FLOATS, st.text())
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
@example({"\ue000": 1, "\U0001f600": 2})
@example(
    [
        1.0,
        -0.0,
        1e16,
        1e-4,
        9.999e-5,
        9.999999999999999e-06,
        1e-5,
        1e-6,
        9.99e-7,
        1e21,
        0.1,
        5e-324,
        1e22,
        123456789012345680.0,
    ]
)
@example({'\u007f\u2028/"\\\b\f\n\r\t\u0001': '\u007f\u2028/"\\\b\f\n\r\t\u0001'})
def test_it_is_what_the_library_writes(value: object) -> None:
    try:
        expected = rfc8785.dumps(value)
    except rfc8785.CanonicalizationError:
        with pytest.raises(InvalidRequest):
            canonical(value)
        return
    assert canonical(value) == expected
    assert is_canonical(expected)


@pytest.mark.parametrize("exponent", range(52, 76))
def test_whole_doubles_of_any_size_are_canonical(exponent: int) -> None:
    for value in (2.0**exponent, 3.0**exponent, 1.1 * 10.0 ** (exponent - 48)):
        assert is_canonical(canonical({"delta_norm": value, "n": [-value, 1]}))


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":9007199254740993}',  # no double: readers would take another number
        b'{"a":1e17}',
        b'{"a":1.0}',
        b'{"a":-0}',
        b'{"a":100000000000000000000000}',
        b'{"b":1,"a":100000000000000000}',
        b'{"a": 100000000000000000}',
        b'{"a":NaN}',
        b'{"a":100000000000000000',
    ],
)
def test_what_is_written_in_another_way_is_not_canonical(text: bytes) -> None:
    assert not is_canonical(text)


@given(rate=FLOATS.filter(lambda rate: 0 <= rate <= 1), some=st.booleans())
@example(rate=0.0, some=True)
@example(rate=1.0, some=False)
@example(rate=9.99e-6, some=False)
def test_what_a_request_says_is_what_the_library_writes(rate: float, *, some: bool) -> None:
    """Which is not looked at again each time it is written."""
    name = '\ue000\U0001f600"é'
    request = IncrementalUpdateRequest(name, 0.5, rate, indices=[2, 0] if some else None)
    facts = validate(request, {name: TensorSpec(name, "float32", (3,))}).facts
    assert canonical(facts) == rfc8785.dumps(facts)
    assert canonical({"é": [facts, 1.0]}) == rfc8785.dumps({"é": [facts, 1.0]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**60, "\ud800", {"a": object()}])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequest, match="canonical JSON"):
        canonical({"x": value})


def test_what_holds_itself_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(InvalidRequest, match="canonical JSON"):
        canonical(endless)


def test_lists_within_lists_are_written_however_deep_the_library_goes() -> None:
    deep: list[object] = []
    for _ in range(300):
        deep = [deep]
    assert canonical(deep) == rfc8785.dumps(deep)


@pytest.mark.parametrize(
    "value", [9.99e-7, 1e-6, 4.9e-6, 9.999999999999999e-06, 1e-5, 1.1e-5, 9.9e-5, 1e-4, 1e16, 0.0]
)
def test_a_norm_of_any_size_is_written_as_the_library_writes_it(value: float) -> None:
    assert canonical({"delta_norm": value}) == rfc8785.dumps({"delta_norm": value})
