"""JSON that people and programs send: each name stands once in its object.

Of a name that stands twice most readers take the last one and say nothing: what was meant is not
known, so it is refused.
"""

import json
import re
from pathlib import Path
from typing import Any

_OF_A_NAME = re.compile(rb"[ \t\n\r]*:")  # what follows it


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
    if isinstance(text, bytes) and _all_differ(text):
        return
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


def _all_differ(text: bytes) -> bool:
    """Whether the quotes alone tell that no two names in the whole text are the same.

    A body is mostly numbers, and to look for its quotes alone takes a hundredth of the time that
    reading it does. Nothing is told of a text with an escape, which may spell a name in another
    way, nor with a zero byte: so are the encodings in which part of a character may look like a
    quote.
    """
    if b"\\" in text or b"\0" in text:
        return False
    names = set()
    begin = text.find(b'"')
    while begin >= 0:
        end = text.find(b'"', begin + 1)
        if end < 0:
            break
        if _OF_A_NAME.match(text, end + 1):
            name = text[begin:end]
            if name in names:
                return False
            names.add(name)
        begin = text.find(b'"', end + 1)
    return True


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
