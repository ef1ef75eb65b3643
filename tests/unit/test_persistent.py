"""The mapping that engines and digests keep by name: copies share what did not change."""

import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightledger.ledger.tensors.persistent import PersistentMap


@settings(deadline=None)
@given(st.integers(0, 300), st.lists(st.dictionaries(st.integers(0, 299), st.integers())))
def test_copies_hold_what_was_replaced_in_them_and_the_others_stay(
    size: int, steps: list[dict[int, int]]
) -> None:
    expected: dict[str, object] = {str(number): -number for number in range(size)}
    now = PersistentMap(expected)
    history = [(now, dict(expected))]
    for step in steps:
        changes = {str(number): value for number, value in step.items() if number < size}
        now = now.replaced(changes)
        expected |= changes
        history.append((now, dict(expected)))
    for one, held in history:
        assert list(one.items()) == list(held.items())
        assert list(one.in_order()) == list(held.values())
        assert len(one) == len(held)
        assert one.between(size // 3, size) == list(held.values())[size // 3 :]
        assert [one.place(name) for name in held] == list(range(size))


def test_a_name_it_lacks_is_refused() -> None:
    one = PersistentMap({"a": 1})
    with pytest.raises(KeyError):
        one.replaced({"b": 2})
    with pytest.raises(KeyError):
        _ = one["b"]
    assert "b" not in one


class Value:
    pass


def test_what_was_replaced_is_let_go() -> None:
    value = Value()
    gone = weakref.ref(value)
    one = PersistentMap({str(number): value if number == 7 else None for number in range(100)})
    del value
    one = one.replaced({"7": None})
    assert gone() is None


def test_a_copy_makes_one_row_anew_whatever_the_size() -> None:
    one = PersistentMap({str(number): object() for number in range(10_000)})
    other = one.replaced({"5000": object()})
    assert sum(a is not b for a, b in zip(one._rows, other._rows, strict=True)) == 1
    assert one._places is other._places
