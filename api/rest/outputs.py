"""What a model gave: as plain JSON, and whether it is numbers."""

from typing import Any

import torch

from weightledger.ledger.monitoring.samples import Outcome


def plain(output: Any) -> Any:
    """Tensors as nested lists, inside whatever containers the model returns."""
    if isinstance(output, torch.Tensor):
        return output.tolist()
    if isinstance(output, dict):
        return {str(key): plain(value) for key, value in output.items()}
    if isinstance(output, list | tuple):
        return [plain(value) for value in output]
    return output


def outcome_of(output: Any) -> Outcome:
    """`not_finite` when any tensor that the model gave has a NaN or an infinity."""
    return "ok" if _finite(output) else "not_finite"


def _finite(output: Any) -> bool:
    if isinstance(output, torch.Tensor):
        # One pass and no mask: what is not finite makes the sum not finite; so does a sum that
        # overflows, which is then looked at closely.
        if not output.is_floating_point():
            return True
        return bool(output.sum().isfinite()) or bool(output.isfinite().all())
    if isinstance(output, dict):
        return all(map(_finite, output.values()))
    if isinstance(output, list | tuple):
        return all(map(_finite, output))
    return True
