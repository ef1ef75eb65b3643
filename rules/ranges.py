"""Types and ranges of hyperparameters, checked when a config is made."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from weightledger.rules.errors import RuleError

_NONE: Mapping[str, Any] = MappingProxyType({})


def check_ranges(
    config: Any,
    *,
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = (),
    fraction: Iterable[str] = (),
    finite: Iterable[str] = (),
    counts: Iterable[str] = (),
    between: Mapping[str, tuple[float, float]] = _NONE,
    at_least: Mapping[str, float] = _NONE,
) -> None:
    """Raise RuleError unless each field is of its default's type, and the named ones in range.

    Those are > 0, ≥ 0, within 0 < f ≤ 1, or any finite number; `counts` are whole numbers from 1;
    `between` has its two ends outside, `at_least` its one inside. Where there are bounds, w_min is
    less than w_max.
    Numbers of numpy and torch become Python's own, since events record a config as JSON.
    """
    for field in dataclasses.fields(config):
        _settle(config, field.name, of_type(field.name, getattr(config, field.name), field.default))
    for name in counts:
        _settle(config, name, count(name, getattr(config, name)))
    checks: tuple[tuple[Iterable[str], str, Callable[[float], bool]], ...] = (
        (positive, "be greater than 0 and finite", lambda value: value > 0),
        (not_negative, "not be negative and finite", lambda value: value >= 0),
        (fraction, "be greater than 0 and at most 1", lambda value: 0 < value <= 1),
        (finite, "be finite", lambda value: True),
    )
    for names, wanted, holds in checks:
        for name in names:
            value = number(name, getattr(config, name))
            if not (math.isfinite(value) and holds(value)):
                raise RuleError(f"{name} must {wanted}, got {value}", param=name)
            _settle(config, name, value)
    for name, (low, high) in between.items():
        if not low < getattr(config, name) < high:
            got = getattr(config, name)
            raise RuleError(f"{name} is within ({low:g}, {high:g}), got {got}", param=name)
    for name, least in at_least.items():
        if getattr(config, name) < least:
            got = getattr(config, name)
            raise RuleError(f"{name} is at least {least:g}, got {got}", param=name)
    if hasattr(config, "w_min"):
        _check_bounds(config.w_min, config.w_max)


def check_rule(config: Any, *, not_negative: Iterable[str] = (), **ranges: Any) -> None:
    """`check_ranges` of a rule's config: a learning rate, where it has one, is not negative."""
    rate = ("learning_rate",) if hasattr(config, "learning_rate") else ()
    check_ranges(config, not_negative=(*rate, *not_negative), **ranges)


def _check_bounds(low: float, high: float) -> None:
    """Raise RuleError unless w_min < w_max, both finite."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RuleError(f"w_min must be less than w_max, got {low} and {high}", param="w_min")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise RuleError unless the value is one of the choices."""
    if value not in choices:
        raise RuleError(f"{name} is one of {', '.join(choices)}, got {value!r}", param=name)


def number(name: str, value: Any) -> float:
    """A real number as Python's own int or float; RuleError for booleans and all else."""
    scalar = plain(value)
    if isinstance(scalar, bool) or not isinstance(scalar, int | float):
        raise RuleError(f"{name} is a number, got {value!r:.50}", param=name)
    return scalar


def count(name: str, value: Any) -> int:
    """A whole number from 1; RuleError for all else."""
    scalar = plain(value)
    if type(scalar) is not int or scalar < 1:
        raise RuleError(f"{name} is a whole number from 1, got {value!r:.50}", param=name)
    return scalar


def of_type(name: str, value: Any, default: Any) -> Any:
    """The value if it is of the default's type, an int also where a float is wanted.

    A default that is no bool, number or text says nothing about the type. RuleError names it.
    """
    if not isinstance(default, bool | int | float | str):
        return value
    scalar = plain(value)
    wanted = int | float if isinstance(default, float) else type(default)
    if not isinstance(scalar, wanted) or isinstance(scalar, bool) != isinstance(default, bool):
        raise RuleError(
            f"{name} is a {type(default).__name__} such as {default!r}, got {value!r:.50}",
            param=name,
        )
    return scalar


def _settle(config: Any, name: str, value: Any) -> None:
    """Put a value into a field of a frozen dataclass that is being made."""
    if value is not getattr(config, name):
        object.__setattr__(config, name, value)


def plain(value: Any) -> Any:
    """What a scalar of numpy, or a tensor or array of no dimensions, holds; else the value."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor) and not value.ndim:
        return value.item()
    return value
