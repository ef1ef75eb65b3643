"""Noticing writes to live tensors: torch counts the in-place writes to each tensor.

Writes through `tensor.data` or a numpy view have no count; hashing finds those.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import torch

from weightledger.ledger.errors import WeightsChangedOutside
from weightledger.ledger.tensors.persistent import PersistentMap

T = TypeVar("T")

_SHOWN = 8
_Mark = tuple[int, int]

AT_ONCE = 32
"""How many tensors are looked at beside those that an update names."""


class Counters:
    """The counts of some tensors, and where their data lies, as the ledger left them; immutable."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        marks: PersistentMap[_Mark] | None = None,
    ) -> None:
        self._tensors = tensors
        self._marks = PersistentMap(_marks(tensors, tensors)) if marks is None else marks

    def changed(self, names: Iterable[str] | None = None) -> list[str]:
        """Those of `names`, or of all, that something else wrote or gave other data."""
        marks = self._marks
        now = _marks(self._tensors, marks if names is None else names)
        return [name for name, mark in now.items() if mark != marks[name]]

    def check(self, names: Iterable[str] | None = None) -> None:
        """Raise WeightsChangedOutside, naming the tensors, if one was written."""
        refuse(self.changed(names))

    def replaced(self, tensors: Mapping[str, torch.Tensor], new: Collection[str]) -> "Counters":
        """Those of the next version: untouched tensors keep their marks, noticed or not."""
        return Counters(tensors, self._marks.replaced(_marks(tensors, new)))


class Rota(Generic[T]):
    """Takes turns: each time the next few of many names, so that all come up."""

    def __init__(self, names: Sequence[T], at_once: int = AT_ONCE) -> None:
        self._names = names
        self._at_once = at_once
        self._next = 0

    def turn(self) -> Sequence[T]:
        """The next names; all of them where they are few."""
        names, start = self._names, self._next
        if len(names) <= self._at_once:
            return names
        stop = start + self._at_once
        self._next = stop if stop < len(names) else 0
        return names[start:stop]


def refuse(changed: Collection[str]) -> None:
    """Raise WeightsChangedOutside if any name is given."""
    if changed:
        shown = ", ".join(list(changed)[:_SHOWN])
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise WeightsChangedOutside(f"live weights were changed without the ledger: {shown}{more}")


def _marks(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, _Mark]:
    """What differs after an in-place write (the count) or `tensor.data = other` (the place)."""
    marks: dict[str, _Mark] = {}
    for name in names:
        tensor = tensors[name]
        marks[name] = (tensor._version, tensor.data_ptr())
    return marks
