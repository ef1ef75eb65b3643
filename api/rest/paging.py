"""Lists with a cursor, in OpenAI's form."""

from collections.abc import Sequence
from typing import Any


def page(items: Sequence[dict[str, Any]], key: str, *, has_more: bool) -> dict[str, Any]:
    """The reply: `key` is the field that serves as the cursor."""
    return {
        "object": "list",
        "data": list(items),
        "first_id": items[0][key] if items else None,
        "last_id": items[-1][key] if items else None,
        "has_more": has_more,
    }
