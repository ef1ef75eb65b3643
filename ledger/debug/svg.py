"""The parts of SVG that pictures share: the frame around them, texts, numbers.

A picture stands by itself in a file or inside a page: it loads nothing and runs nothing, colours
are attributes, text has the colour of what is around it. A title and a description say to a screen
reader what is to be seen. Every text is escaped.
"""

import re
from collections.abc import Sequence
from xml.sax.saxutils import escape

CHARACTER = 6.6  # width of one, on average
BLUE, RED, GREY = "#2563a8", "#b3261e", "#9aa0a6"

_FONT = 'font-family="system-ui, sans-serif" font-size="12"'
_LABEL_MOST = 48  # characters
# XML has no place for these, not even escaped.
_UNWRITABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    "\ud800-\udfff\ufffe\uffff]"
)


def document(
    title: str, description: str, width: float, height: float, parts: Sequence[str]
) -> str:
    inside = "\n".join(part for part in parts if part)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" {_FONT} '
        'fill="currentColor">\n'
        f"<title>{text(title)}</title>\n<desc>{text(description)}</desc>\n{inside}\n</svg>\n"
    )


def heading(title: str) -> str:
    return f'<text x="8" y="20" font-weight="bold">{text(title)}</text>'


def number_text(value: float | None, digits: int = 3) -> str:
    return "no measure" if value is None else f"{value:.{digits}g}"


def apart(low: float, high: float) -> int:
    """With how many significant digits values from one to the other are told apart."""
    digits = 3
    while digits < 17 and f"{low:.{digits - 1}g}" == f"{high:.{digits - 1}g}":
        digits += 1
    return digits


def label_width(labels: Sequence[str]) -> int:
    longest = max((min(len(label), _LABEL_MOST) for label in labels), default=0)
    return int(longest * CHARACTER) + 24


def label_text(label: str) -> str:
    """A name that fits: of a long one its end, which says most."""
    return text(label if len(label) <= _LABEL_MOST else "…" + label[1 - _LABEL_MOST :])


def text(value: str) -> str:
    return escape(_UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", value), {'"': "&quot;"})
