"""Losing the compare-and-set to other writers: how long one waits, and when one gives up."""

import random
import time

from weightledger.ledger.errors import Conflict

_PATIENCE_S = 10.0
_BACKOFF_S = 0.001
_MOST_BACKOFF_S = 0.1


def out_of_patience(started: float) -> bool:
    """Whether a write that began at `started`, by `time.perf_counter`, has tried long enough."""
    return time.perf_counter() - started > _PATIENCE_S


def back_off(attempts: int) -> None:
    """Wait a random moment that doubles with each attempt."""
    most = min(_BACKOFF_S * 2**attempts, _MOST_BACKOFF_S)
    time.sleep(random.random() * most)


def gave_up(attempts: int, model: str) -> Conflict:
    """The error of a write that lost every time."""
    return Conflict(f"other writers won {attempts} times in a row on model {model!r}")
