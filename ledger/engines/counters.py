"""Noticing writes to live tensors: torch counts the in-place writes to each tensor.

Writes through `tensor.data` or a numpy view have no count; hashing finds those.
"""

from collections.abc import Collection, Mapping

import torch

from weightledger.ledger.errors import WeightsChangedOutside

_SHOWN = 8
_Mark = tuple[int, int]


class Counters:
    """The counts of some tensors, and where their data lies, as the ledger left them."""

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], marks: Mapping[str, _Mark] | None = None
    ) -> None:
        self._tensors = tensors
        self._marks = _marks(tensors) if marks is None else marks

    def changed(self) -> list[str]:
        """Names of the tensors that something else wrote or gave other data."""
        now = _marks(self._tensors)
        if now == self._marks:
            return []
        return [name for name, mark in now.items() if mark != self._marks[name]]

    def check(self) -> None:
        """Raise WeightsChangedOutside, naming the tensors, if one was written."""
        refuse(self.changed())

    def replaced(
        self, tensors: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]
    ) -> "Counters":
        """Those of the next version: untouched tensors keep their marks, noticed or not."""
        return Counters(tensors, {**self._marks, **_marks(new)})

    def rewritten(self, before: Collection[str]) -> "Counters":
        """After the ledger wrote these same tensors; `before` stay noticed as changed outside."""
        kept = {name: self._marks[name] for name in before}
        return Counters(self._tensors, {**_marks(self._tensors), **kept})


def refuse(changed: Collection[str]) -> None:
    """Raise WeightsChangedOutside if any name is given."""
    if changed:
        shown = ", ".join(list(changed)[:_SHOWN])
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise WeightsChangedOutside(f"live weights were changed without the ledger: {shown}{more}")


def _marks(tensors: Mapping[str, torch.Tensor]) -> dict[str, _Mark]:
    """What differs after an in-place write (the count) or `tensor.data = other` (the place)."""
    return {name: (tensor._version, tensor.data_ptr()) for name, tensor in tensors.items()}
