"""Pictures as SVG, of plain numbers and names: bars, a heat map, a line.

Each stands by itself in a file or inside a page: it loads nothing and runs nothing, colours are
attributes, text has the colour of what is around it. A title and a description say to a screen
reader what is to be seen, and every mark has its number in words. Every text is escaped.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_FONT = 'font-family="system-ui, sans-serif" font-size="12"'
_CHARACTER = 6.6  # width of one, on average
_ROW = 20
_LABEL_MOST = 48  # characters
_BLUE, _RED, _GREY = "#2563a8", "#b3261e", "#9aa0a6"
# XML has no place for these, not even escaped.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: `value` None is a bar without a measure; `alert` makes it red."""

    label: str
    value: float | None
    alert: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a line: `value` None is a gap; `faded` is drawn in grey."""

    label: str
    value: float | None
    faded: bool = False


def bars(title: str, description: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from zero, in the order given."""
    left = _label_width([row.label for row in rows])
    most = max((row.value for row in rows if row.value is not None), default=0.0) or 1.0
    width, span = left + 440, 340
    parts = [_heading(title)]
    for number, row in enumerate(rows):
        y = 34 + number * _ROW
        length = span if row.value is None else span * max(row.value, 0.0) / most
        text = _number(row.value)
        colour = _RED if row.alert else _GREY if row.value is None else _BLUE
        parts.append(
            f"<g><title>{_text(row.label)}: {text}</title>"
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{_label(row.label)}</text>'
            f'<rect x="{left}" y="{y + 3}" width="{max(length, 1):.1f}" height="14" '
            f'fill="{colour}"/>'
            f'<text x="{left + max(length, 1) + 6:.1f}" y="{y + 13}">{text}</text></g>'
        )
    if not rows:
        parts.append('<text x="8" y="48">nothing changed</text>')
    return _svg(title, description, width, 44 + max(len(rows), 1) * _ROW, parts)


def heat_map(
    title: str,
    description: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[float | None]]],
) -> str:
    """Cells on a scale of powers of ten; None is an empty cell, infinity a red one."""
    left = _label_width([name for name, _ in rows])
    cell = max(6, min(24, 900 // max(len(columns), 1)))
    cells = [value for _, values in rows for value in values]
    known = [math.log10(v) for v in cells if v is not None and 0 < v < math.inf]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    width = left + cell * len(columns) + 24
    parts = [_heading(title)]
    for number, (name, values) in enumerate(rows):
        y = 34 + number * _ROW
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{_label(name)}</text>')
        for at, value in enumerate(values):
            if value is None:
                continue
            words = "new" if value == math.inf else _number(value)
            parts.append(
                f'<rect x="{left + at * cell}" y="{y}" width="{cell - 1}" height="{_ROW - 1}" '
                f'fill="{_heat(value, low, high)}">'
                f"<title>{_text(name)}, {_text(columns[at])}: {words}</title></rect>"
            )
    bottom = 34 + max(len(rows), 1) * _ROW
    if rows and columns:
        ends = _text(columns[0]), _text(columns[-1])
        right = left + cell * len(columns)
        parts.append(f'<text x="{left}" y="{bottom + 14}">{ends[0]}</text>')
        if len(columns) > 1:
            parts.append(f'<text x="{right}" y="{bottom + 30}" text-anchor="end">{ends[1]}</text>')
        width = max(width, left + int(_CHARACTER * max(map(len, ends))) + 24)
    else:
        parts.append('<text x="8" y="48">nothing changed</text>')
    parts.append(_legend(left, bottom + 40, low, high) if known else "")
    return _svg(title, description, max(width, left + 260), bottom + 64, parts)


def line(title: str, description: str, points: Sequence[Point]) -> str:
    """Values in their order from left to right, a dot each; grey ones are not joined."""
    left, span, height = 80, 720, 220
    known = [point.value for point in points if point.value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    step = span / max(len(points) - 1, 1)
    parts = [_heading(title)]
    joined: list[str] = []
    dots: list[str] = []
    for number, point in enumerate(points):
        if point.value is None:
            continue
        x = left + number * step
        y = 40 + height * (1 - (point.value - low) / (high - low))
        if not point.faded:
            joined.append(f"{x:.1f},{y:.1f}")
        dots.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{_GREY if point.faded else _BLUE}">'
            f"<title>{_text(point.label)}: {_number(point.value)}</title></circle>"
        )
    for value, y in ((high, 40), (low, 40 + height)):
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{_number(value)}</text>')
        parts.append(
            f'<line x1="{left}" y1="{y}" x2="{left + span}" y2="{y}" stroke="{_GREY}" '
            'stroke-width="0.5"/>'
        )
    if joined:
        parts.append(
            f'<polyline points="{" ".join(joined)}" fill="none" stroke="{_BLUE}" '
            'stroke-width="1.5"/>'
        )
    parts += dots
    if points:
        parts.append(f'<text x="{left}" y="{height + 64}">{_text(points[0].label)}</text>')
        if len(points) > 1:
            parts.append(
                f'<text x="{left + span}" y="{height + 80}" text-anchor="end">'
                f"{_text(points[-1].label)}</text>"
            )
    else:
        parts.append(f'<text x="{left + 8}" y="60">nothing to show</text>')
    return _svg(title, description, left + span + 24, height + 92, parts)


def _svg(title: str, description: str, width: float, height: float, parts: Sequence[str]) -> str:
    inside = "\n".join(part for part in parts if part)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" {_FONT} '
        'fill="currentColor">\n'
        f"<title>{_text(title)}</title>\n<desc>{_text(description)}</desc>\n{inside}\n</svg>\n"
    )


def _heading(title: str) -> str:
    return f'<text x="8" y="20" font-weight="bold">{_text(title)}</text>'


def _legend(x: int, y: int, low: float, high: float) -> str:
    steps = [low + (high - low) * n / 4 for n in range(5)] if high > low else [low]
    return "".join(
        f'<rect x="{x + n * 56}" y="{y}" width="14" height="14" '
        f'fill="{_heat(10**step, low, high)}"/>'
        f'<text x="{x + n * 56 + 18}" y="{y + 12}" font-size="10">{_number(10**step)}</text>'
        for n, step in enumerate(steps)
    )


def _heat(value: float, low: float, high: float) -> str:
    """From pale to dark blue by the logarithm."""
    if value == math.inf:
        return _RED
    if value <= 0:
        return "#e8eef5"
    at = (math.log10(value) - low) / (high - low) if high > low else 1.0
    pale, dark = (0xCF, 0xE0, 0xF2), (0x08, 0x30, 0x6B)
    mixed = (round(p + (d - p) * at) for p, d in zip(pale, dark, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _number(value: float | None) -> str:
    return "no measure" if value is None else f"{value:.3g}"


def _label_width(labels: Sequence[str]) -> int:
    longest = max((min(len(label), _LABEL_MOST) for label in labels), default=0)
    return int(longest * _CHARACTER) + 24


def _label(label: str) -> str:
    """A name that fits: of a long one its end, which says most."""
    return _text(label if len(label) <= _LABEL_MOST else "…" + label[1 - _LABEL_MOST :])


def _text(value: str) -> str:
    return escape(_UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", value), {'"': "&quot;"})
