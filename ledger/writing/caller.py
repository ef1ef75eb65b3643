"""Who asks for a write, and on what condition."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from weightledger.ledger.errors import InvalidRequest

MAX_KEY = 255


def _check_text(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string, got {type(value).__name__}", param=name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name} holds a lone surrogate", param=name) from None
    if "\0" in value:  # PostgreSQL keeps none, so SQLite does not either
        raise InvalidRequest(f"{name} holds a NUL character", param=name)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for a write, and on what condition.

    `expected_seq` is the seq of the last state change that the caller has seen;
    `idempotency_key` has 1 to 255 characters. Raises InvalidRequest for anything else.
    """

    actor: str | None = None
    reason: str | None = None
    request_id: str | None = None
    idempotency_key: str | None = None
    expected_seq: int | None = None

    def __post_init__(self) -> None:
        for name in ("actor", "reason", "request_id", "idempotency_key"):
            _check_text(name, getattr(self, name))
        key, seq = self.idempotency_key, self.expected_seq
        if key is not None and not 1 <= len(key) <= MAX_KEY:
            raise InvalidRequest(
                f"idempotency_key must have 1 to {MAX_KEY} characters, got {len(key)}",
                param="idempotency_key",
            )
        if isinstance(seq, np.integer):
            object.__setattr__(self, "expected_seq", seq := int(seq))
        if seq is not None and (type(seq) is not int or seq < 0):
            raise InvalidRequest(
                f"expected_seq must be a seq, 0 or more, got {seq!r}", param="expected_seq"
            )


ANYONE = Caller()
