"""A mapping with fixed names whose values can be replaced in a copy that shares all the rest.

Values lie in rows of 64. A copy makes anew the rows that change and the tuple of rows, whatever the
mapping holds, and nothing that was replaced is kept alive by the copy.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Generic, TypeVar

V = TypeVar("V")

_BITS = 6
_WIDTH = 1 << _BITS
_INSIDE = _WIDTH - 1


class PersistentMap(Mapping[str, V], Generic[V]):
    """An immutable mapping; iterates in the order of the names it was made with."""

    __slots__ = ("_places", "_rows")

    def __init__(self, items: Mapping[str, V]) -> None:
        self._places = {name: place for place, name in enumerate(items)}
        values = tuple(items.values())
        self._rows = tuple(values[at : at + _WIDTH] for at in range(0, len(values), _WIDTH))

    def __getitem__(self, name: str) -> V:
        place = self._places[name]
        return self._rows[place >> _BITS][place & _INSIDE]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def place(self, name: str) -> int:
        """Where a name stands in the order, from 0. Raises KeyError for another name."""
        return self._places[name]

    def between(self, start: int, stop: int) -> list[V]:
        """The values at these places."""
        return [self._rows[at >> _BITS][at & _INSIDE] for at in range(start, stop)]

    def in_order(self) -> Iterator[V]:
        """All values, one after the other."""
        return chain.from_iterable(self._rows)

    def replaced(self, changes: Mapping[str, V]) -> "PersistentMap[V]":
        """A copy with other values for these names. Raises KeyError for a name it lacks."""
        rows: list[Any] = list(self._rows)
        fresh: set[int] = set()
        for name, value in changes.items():
            place = self._places[name]
            number = place >> _BITS
            if number not in fresh:
                fresh.add(number)
                rows[number] = [*rows[number]]
            rows[number][place & _INSIDE] = value
        for number in fresh:
            rows[number] = tuple(rows[number])
        other: PersistentMap[V] = object.__new__(PersistentMap)
        other._places, other._rows = self._places, tuple(rows)
        return other
