"""Canonical JSON (RFC 8785): one sequence of bytes for one value.

The library that writes it is pure Python and takes a fifth of a small update, so values that
orjson writes the same way go through that. Which ones do is decided here, and the test compares
both over everything JSON can say.
"""

import json
from collections.abc import Callable
from typing import Any

import orjson
import rfc8785

from weightledger.ledger.errors import InvalidRequest

# Where orjson and ECMAScript disagree on exponents, and where whole numbers begin.
_UNLIKE_FROM, _UNLIKE_TO, _WHOLE_FROM = 1e-6, 1e-5, 1e16
_EXACT = 1 << 53


class Plain(dict[str, Any]):
    """An object that orjson writes canonically, which need not be looked at: its names are ASCII,
    and in it are texts, whole numbers that JSON has, numbers that are `is_plain`, and lists and
    objects of these. Whoever makes one sees to it; afterwards nobody changes it."""

    __slots__ = ()


_PLAIN = {str, bool, type(None), Plain}


def canonical(value: Any, *, param: str | None = None) -> bytes:
    """RFC 8785 bytes of a JSON value; InvalidRequest for what has none (NaN, huge ints, …)."""
    try:
        if _alike(value):
            try:
                return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
            except orjson.JSONEncodeError:
                pass  # a lone surrogate, or lists too deep for it: the library says why, or can
        return rfc8785.dumps(value)
    except rfc8785.IntegerDomainError as error:
        raise InvalidRequest(
            f"not representable as canonical JSON: {error}, so other programs would read another"
            " number; send it as a string",
            param=param,
        ) from None
    except RecursionError:
        raise InvalidRequest("nested too deeply for canonical JSON", param=param) from None
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise InvalidRequest(f"not representable as canonical JSON: {error}", param=param) from None


def is_canonical(text: bytes) -> bool:
    """Whether this is the one way to write this JSON, so that readers of any make read the same.

    Its numbers are doubles: a whole one of 2^53 or more, such as the norm of a huge difference, has
    the digits of the double that it is.
    """
    try:
        return _rewritten(text, orjson.loads) or _rewritten(text, _doubles)
    except RecursionError:
        return False


def _rewritten(text: bytes, read: Callable[[bytes], Any]) -> bool:
    try:
        return canonical(read(text)) == text
    except (InvalidRequest, ValueError):
        return False


def _doubles(text: bytes) -> Any:
    return json.loads(text, parse_int=_whole)


def _whole(digits: str) -> int | float:
    number = float(digits)
    return number if abs(number) >= _EXACT else int(digits)


def is_plain(number: float) -> bool:
    """Whether orjson writes a finite number canonically."""
    return _alike(number)


def _alike(value: Any) -> bool:
    """Whether orjson writes this value canonically."""
    kind = type(value)
    if kind is dict:
        # Names sort by UTF-16 code units there and by bytes here: the same in ASCII.
        try:
            if not "".join(value).isascii():
                return False
        except TypeError:  # a name that is no text
            return False
        inside = value.values()
    elif kind is list or kind is tuple:
        inside = value
    else:
        inside = (value,)
    for one in inside:  # numbers are looked at here: a call for each would take most of the time
        kind = type(one)
        if kind in _PLAIN:
            continue
        if kind is float:
            size = abs(one)
            exponents_agree = size < _UNLIKE_FROM or _UNLIKE_TO <= size < _WHOLE_FROM
            if not exponents_agree or one.is_integer():
                return False
        elif kind is int:
            if not -_EXACT < one < _EXACT:
                return False
        elif (kind is not dict and kind is not list and kind is not tuple) or (
            one and not _alike(one)
        ):
            return False
    return True
