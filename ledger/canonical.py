"""Canonical JSON (RFC 8785): one sequence of bytes for one value.

The library that writes it is pure Python and takes a fifth of a small update, so values that the
interpreter's own encoder writes the same way go through that. Which ones do is decided here, and
the test compares both over everything JSON can say.
"""

import json
from typing import Any

import rfc8785

from ledger.errors import InvalidRequest

# Python and ECMAScript write floats alike between these; elsewhere they disagree on exponents.
_ALIKE_FROM, _ALIKE_TO = 1e-4, 1e16
_EXACT = 1 << 53

_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
)


def canonical(value: Any, *, param: str | None = None) -> bytes:
    """RFC 8785 bytes of a JSON value; InvalidRequest for what has none (NaN, huge ints, …)."""
    try:
        if _alike(value):
            return _ENCODER.encode(value).encode()
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidRequest(f"not representable as canonical JSON: {error}", param=param) from None


def _alike(value: Any) -> bool:
    """Whether Python's encoder writes this value canonically."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return True
    if kind is int:
        return bool(-_EXACT < value < _EXACT)
    if kind is float:
        return bool(_ALIKE_FROM <= abs(value) < _ALIKE_TO and not value.is_integer())
    if kind is dict:
        # Names sort by UTF-16 code units there and by code points here: the same in ASCII.
        return all(type(k) is str and k.isascii() and _alike(v) for k, v in value.items())
    if kind is list or kind is tuple:
        return all(map(_alike, value))
    return False
