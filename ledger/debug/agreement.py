"""Whether two replies say the same, and where they first do not."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_EXCERPT = 24  # characters of a text from its first difference on

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where two replies differ; `at` is the first differing character of two texts.

    `expected` and `got` are what stands there, of texts a few characters from `at` on; "nothing"
    where one of the two has no such place.
    """

    path: str
    expected: Any
    got: Any
    at: int | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two replies compare: values in all, those that differ, the first, and how far at most.

    `largest` is the largest absolute difference of two numbers and `largest_at` its place; None
    where no two numbers differ.
    """

    compared: int
    differing: int
    first: Difference | None
    largest: float | None
    largest_at: str | None

    @property
    def same(self) -> bool:
        """Whether nothing differs; no value at all is no agreement."""
        return self.compared > 0 and self.differing == 0


def agreement(expected: Any, got: Any) -> Agreement:
    """Compare two JSON values, in the order of the expected one.

    Numbers are the same when they are equal and zeros have the same sign: float32 and smaller
    survive JSON to the bit.
    """
    compared = differing = 0
    first: Difference | None = None
    largest: float | None = None
    largest_at: str | None = None
    for path, one, other in _pairs("", expected, got):
        compared += 1
        if _same(one, other):
            continue
        differing += 1
        first = first or _difference(path, one, other)
        if _is_number(one) and _is_number(other):
            distance = _distance(one, other)
            if largest is None or distance > largest:
                largest, largest_at = distance, path
    return Agreement(compared, differing, first, largest, largest_at)


def _pairs(path: str, expected: Any, got: Any) -> Iterator[tuple[str, Any, Any]]:
    """What stands at each place of either; containers of another kind are one place."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in expected | got:
            inner = f"{path}.{key}" if path else str(key)
            yield from _pairs(inner, expected.get(key, _ABSENT), got.get(key, _ABSENT))
    elif isinstance(expected, list) and isinstance(got, list):
        for index in range(max(len(expected), len(got))):
            one = expected[index] if index < len(expected) else _ABSENT
            other = got[index] if index < len(got) else _ABSENT
            yield from _pairs(f"{path}[{index}]", one, other)
    else:
        yield path, expected, got


def _same(one: Any, other: Any) -> bool:
    if _is_number(one) and _is_number(other):
        return bool(one == other) and (one != 0 or _sign(one) == _sign(other))
    return type(one) is type(other) and bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sign(zero: float) -> float:
    return math.copysign(1.0, zero)


def _distance(one: float, other: float) -> float:
    try:
        distance = abs(float(one) - float(other))
    except OverflowError:
        return math.inf
    return math.inf if math.isnan(distance) else distance


def _difference(path: str, one: Any, other: Any) -> Difference:
    if isinstance(one, str) and isinstance(other, str):
        shorter = min(len(one), len(other))
        at = next((n for n in range(shorter) if one[n] != other[n]), shorter)
        return Difference(path, one[at : at + _EXCERPT], other[at : at + _EXCERPT], at)
    return Difference(path, _shown(one), _shown(other))


def _shown(value: Any) -> Any:
    if value is _ABSENT:
        return "nothing"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return value if not isinstance(value, str) else value[:_EXCERPT]
