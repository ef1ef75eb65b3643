"""JSON that people and programs send: each name stands once in its object.

Of a name that stands twice most readers take the last one and say nothing: what was meant is not
known, so it is refused.
"""

import json
from pathlib import Path
from typing import Any


class RepeatedName(ValueError):
    """An object has a name twice; `name` is the one."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r:.200} stands more than once in one object")
        self.name = name


def loads(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError where it is none, RepeatedName among them."""
    return json.loads(text, object_pairs_hook=_object)


def require_names_once(text: str | bytes) -> None:
    """Raise RepeatedName where an object has a name twice.

    Of a text that cannot be read nothing is said here: whoever reads it for good knows better what
    was expected.
    """
    try:
        json.loads(
            text, strict=False, object_pairs_hook=_object, parse_int=_unread, parse_float=_unread
        )
    except RepeatedName:
        raise
    except (ValueError, RecursionError):
        return


def require_header_names_once(file: Path) -> None:
    """Raise RepeatedName where the header of a safetensors file has a name twice.

    It is eight bytes with its length, then JSON; of a file that is none nothing is said.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length <= file.stat().st_size:
            require_names_once(opened.read(length))


def _unread(_: str) -> None:
    """What a number is matters to nobody here, and it may be longer than Python reads."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise RepeatedName(name)
            names.add(name)
    return members
