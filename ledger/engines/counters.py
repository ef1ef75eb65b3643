"""Noticing writes to live tensors: torch counts the in-place writes to each tensor.

Writes through `tensor.data` or a numpy view have no count; hashing finds those.
"""

from collections.abc import Mapping

import torch

from ledger.errors import WeightsChangedOutside

_SHOWN = 8


class Counters:
    """The counts of some tensors, as they were when this was made."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._counts = [_count(tensor) for tensor in tensors.values()]

    def check(self) -> None:
        """Raise WeightsChangedOutside, naming the tensors, if one was written since."""
        changed = [
            name
            for (name, tensor), count in zip(self._tensors.items(), self._counts, strict=True)
            if _count(tensor) != count
        ]
        if changed:
            more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
            raise WeightsChangedOutside(
                f"live weights were changed without the ledger: {', '.join(changed[:_SHOWN])}{more}"
            )


def _count(tensor: torch.Tensor) -> int:
    # Tensors made in inference mode have no counter and cannot be written in place outside it.
    return 0 if tensor.is_inference() else tensor._version
