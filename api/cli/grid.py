"""How wide the columns of a table are, so that no number, id or short word is cut in two."""

from collections.abc import Sequence

from rich.cells import cell_len

_BROKEN = 10
"""What is longer may be broken where it stands among other words: names, links, made up words."""

_GAPS = (2, 1)


def fitting(
    columns: Sequence[Sequence[str]], whole: Sequence[bool], room: int
) -> tuple[list[int], int] | None:
    """The widths of columns and the gap between two of them; None where `room` has none for them.

    Each column is its head and its cells, all on one line; those in `whole` are not wrapped.
    """
    natural = [max(cell_len(text) for text in column) for column in columns]
    narrow = least(columns, whole)
    for gap in _GAPS:
        left = room - gap * (len(columns) - 1)
        if sum(narrow) <= left:
            return _shrunk(natural, narrow, left), gap
    return None


def least(columns: Sequence[Sequence[str]], whole: Sequence[bool]) -> list[int]:
    """How narrow each column may become."""
    return [
        max(cell_len(text) if keeps else _least(text, text is column[0]) for text in column)
        for column, keeps in zip(columns, whole, strict=True)
    ]


def _least(text: str, is_head: bool) -> int:
    words = text.split() or [""]
    return max(
        cell_len(word) if is_head or _is_number(word) else min(cell_len(word), _BROKEN)
        for word in words
    )


def _is_number(word: str) -> bool:
    try:
        float(word.rstrip("%"))
    except ValueError:
        return False
    return True


def _shrunk(natural: Sequence[int], narrow: Sequence[int], room: int) -> list[int]:
    """Widths that fit, taken from the widest that may give."""
    widths = list(natural)
    for _ in range(sum(widths) - room):
        give = [(width, at) for at, width in enumerate(widths) if width > narrow[at]]
        widths[max(give)[1]] -= 1
    return widths
