"""Ranges of hyperparameters, checked when a rule is made."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from weightledger.rules.errors import RuleError


def check_ranges(
    config: Any,
    *,
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = (),
    fraction: Iterable[str] = (),
) -> None:
    """Raise RuleError unless the named fields are > 0, ≥ 0, or within 0 < f ≤ 1, and finite."""
    checks: tuple[tuple[Iterable[str], str, Callable[[float], bool]], ...] = (
        (positive, "be greater than 0", lambda value: value > 0),
        (not_negative, "not be negative", lambda value: value >= 0),
        (fraction, "be greater than 0 and at most 1", lambda value: 0 < value <= 1),
    )
    for names, wanted, holds in checks:
        for name in names:
            value = getattr(config, name)
            if not (math.isfinite(value) and holds(value)):
                raise RuleError(f"{name} must {wanted} and finite, got {value}", param=name)


def check_bounds(low: float, high: float) -> None:
    """Raise RuleError unless w_min < w_max, both finite."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RuleError(f"w_min must be less than w_max, got {low} and {high}", param="w_min")
