"""Lists with a cursor, in OpenAI's form."""

from collections.abc import Sequence
from typing import Any

from fastapi import Request

from weightledger.ledger.errors import InvalidRequest

MAX_LIMIT = 100
DEFAULT_LIMIT = 20


def require_known(request: Request, known: frozenset[str]) -> None:
    """Raise InvalidRequest for a query parameter that the route does not have."""
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        raise InvalidRequest(
            f"unknown query parameter {unknown[0]!r}; expected some of {', '.join(sorted(known))}",
            param=unknown[0],
        )


def integer(request: Request, name: str, *, least: int = 0, most: int = 1 << 53) -> int | None:
    """An integer query parameter; None when it is absent."""
    text = request.query_params.get(name)
    if text is None:
        return None
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 17 else least - 1
    if not least <= value <= most:
        raise InvalidRequest(f"{name} must be an integer from {least} to {most}", param=name)
    return value


def limit(request: Request) -> int:
    """How many items a page has."""
    value = integer(request, "limit", least=1, most=MAX_LIMIT)
    return DEFAULT_LIMIT if value is None else value


def page(items: Sequence[dict[str, Any]], key: str, *, has_more: bool) -> dict[str, Any]:
    """The reply: `key` is the field that serves as the cursor."""
    return {
        "object": "list",
        "data": list(items),
        "first_id": items[0][key] if items else None,
        "last_id": items[-1][key] if items else None,
        "has_more": has_more,
    }
