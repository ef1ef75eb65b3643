"""Pictures as SVG, of plain numbers and names: bars, a heat map, a line, a search.

Every mark has its number in words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from weightledger.ledger.debug.svg import (
    BLUE,
    CHARACTER,
    GREY,
    RED,
    apart,
    document,
    heading,
    label_text,
    label_width,
    number_text,
    text,
)

_ROW = 20


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: `value` None is a bar without a measure; `alert` makes it red."""

    label: str
    value: float | None
    alert: bool = False


@dataclass(frozen=True, slots=True)
class LinePoint:
    """One point of a line: `value` None is a gap; `faded` is drawn in grey."""

    label: str
    value: float | None
    faded: bool = False


def bars(title: str, description: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from zero, in the order given."""
    left = label_width([row.label for row in rows])
    most = max((row.value for row in rows if row.value is not None), default=0.0) or 1.0
    width, span = left + 440, 340
    parts = [heading(title)]
    for number, row in enumerate(rows):
        y = 34 + number * _ROW
        length = span if row.value is None else span * max(row.value, 0.0) / most
        number_words = number_text(row.value)
        colour = RED if row.alert else GREY if row.value is None else BLUE
        parts.append(
            f"<g><title>{text(row.label)}: {number_words}</title>"
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{label_text(row.label)}</text>'
            f'<rect x="{left}" y="{y + 3}" width="{max(length, 1):.1f}" height="14" '
            f'fill="{colour}"/>'
            f'<text x="{left + max(length, 1) + 6:.1f}" y="{y + 13}">{number_words}</text></g>'
        )
    if not rows:
        parts.append('<text x="8" y="48">nothing changed</text>')
    return document(title, description, width, 44 + max(len(rows), 1) * _ROW, parts)


def heat_map(
    title: str,
    description: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[float | None]]],
) -> str:
    """Cells on a scale of powers of ten; None is an empty cell, infinity a red one."""
    left = label_width([name for name, _ in rows])
    cell = max(6, min(24, 900 // max(len(columns), 1)))
    cells = [value for _, values in rows for value in values]
    known = [math.log10(v) for v in cells if v is not None and 0 < v < math.inf]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    width = left + cell * len(columns) + 24
    parts = [heading(title)]
    for number, (name, values) in enumerate(rows):
        y = 34 + number * _ROW
        parts.append(
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{label_text(name)}</text>'
        )
        for at, value in enumerate(values):
            if value is None:
                continue
            words = "new" if value == math.inf else number_text(value)
            parts.append(
                f'<rect x="{left + at * cell}" y="{y}" width="{cell - 1}" height="{_ROW - 1}" '
                f'fill="{_heat(value, low, high)}">'
                f"<title>{text(name)}, {text(columns[at])}: {words}</title></rect>"
            )
    bottom = 34 + max(len(rows), 1) * _ROW
    if rows and columns:
        ends = text(columns[0]), text(columns[-1])
        right = left + cell * len(columns)
        parts.append(f'<text x="{left}" y="{bottom + 14}">{ends[0]}</text>')
        if len(columns) > 1:
            parts.append(f'<text x="{right}" y="{bottom + 30}" text-anchor="end">{ends[1]}</text>')
        width = max(width, left + int(CHARACTER * max(map(len, ends))) + 24)
    else:
        parts.append('<text x="8" y="48">nothing changed</text>')
    parts.append(_legend(left, bottom + 40, low, high) if known else "")
    return document(title, description, max(width, left + 360), bottom + 64, parts)


def line(title: str, description: str, points: Sequence[LinePoint]) -> str:
    """Values in their order from left to right, a dot each; grey ones are not joined."""
    span, height = 720, 220
    known = [point.value for point in points if point.value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    digits = apart(low, high)
    left = max(80, label_width([number_text(end, digits) for end in (low, high)]))
    step = span / max(len(points) - 1, 1)
    parts = [heading(title)]
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
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{GREY if point.faded else BLUE}">'
            f"<title>{text(point.label)}: {number_text(point.value, digits)}</title></circle>"
        )
    for value, y in ((high, 40), (low, 40 + height)):
        parts.append(
            f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">'
            f"{number_text(value, digits)}</text>"
        )
        parts.append(
            f'<line x1="{left}" y1="{y}" x2="{left + span}" y2="{y}" stroke="{GREY}" '
            'stroke-width="0.5"/>'
        )
    if joined:
        parts.append(
            f'<polyline points="{" ".join(joined)}" fill="none" stroke="{BLUE}" '
            'stroke-width="1.5"/>'
        )
    parts += dots
    if points:
        parts.append(f'<text x="{left}" y="{height + 64}">{text(points[0].label)}</text>')
        if len(points) > 1:
            parts.append(
                f'<text x="{left + span}" y="{height + 80}" text-anchor="end">'
                f"{text(points[-1].label)}</text>"
            )
    else:
        parts.append(f'<text x="{left + 8}" y="60">nothing to show</text>')
    return document(title, description, left + span + 24, height + 92, parts)


@dataclass(frozen=True, slots=True)
class VerdictMark:
    """A verdict on the way of a search, at 0 (its beginning) to 1."""

    at: float
    label: str
    colour: str


def search(
    title: str,
    description: str,
    columns: Sequence[Bar],
    marks: Sequence[VerdictMark],
    ends: Sequence[str],
) -> str:
    """How likely each stretch of a way is to blame, and below it what was judged."""
    left, span, height = 60, 720, 180
    most = max((one.value or 0.0 for one in columns), default=0.0) or 1.0
    wide = span / max(len(columns), 1)
    base = 40 + height
    parts = [heading(title), f'<text x="{left - 8}" y="44" text-anchor="end">{most:.3g}</text>']
    parts.append(
        f'<line x1="{left}" y1="{base}" x2="{left + span}" y2="{base}" stroke="{GREY}" '
        'stroke-width="0.5"/>'
    )
    for number, one in enumerate(columns):
        tall = height * (one.value or 0.0) / most
        if tall <= 0:
            continue
        parts.append(
            f'<rect x="{left + number * wide:.1f}" y="{base - max(tall, 1):.1f}" '
            f'width="{max(wide - 0.5, 1):.1f}" height="{max(tall, 1):.1f}" fill="{BLUE}">'
            f"<title>{text(one.label)}: {number_text(one.value)}</title></rect>"
        )
    parts += [
        f'<circle cx="{left + span * mark.at:.1f}" cy="{base + 14}" r="4" fill="{mark.colour}">'
        f"<title>{text(mark.label)}</title></circle>"
        for mark in marks
    ]
    parts.append(f'<text x="{left}" y="{base + 40}">{text(ends[0])}</text>')
    parts.append(
        f'<text x="{left + span}" y="{base + 40}" text-anchor="end">{text(ends[1])}</text>'
    )
    return document(title, description, left + span + 24, base + 52, parts)


def _legend(x: int, y: int, low: float, high: float) -> str:
    steps = [low + (high - low) * n / 4 for n in range(5)] if high > low else [low]
    return "".join(
        f'<rect x="{x + n * 76}" y="{y}" width="14" height="14" '
        f'fill="{_heat(10**step, low, high)}"/>'
        f'<text x="{x + n * 76 + 18}" y="{y + 12}" font-size="10">{number_text(10**step)}</text>'
        for n, step in enumerate(steps)
    )


def _heat(value: float, low: float, high: float) -> str:
    """From pale to dark blue by the logarithm."""
    if value == math.inf:
        return RED
    if value <= 0:
        return "#e8eef5"
    at = (math.log10(value) - low) / (high - low) if high > low else 1.0
    pale, dark = (0xCF, 0xE0, 0xF2), (0x08, 0x30, 0x6B)
    mixed = (round(p + (d - p) * at) for p, d in zip(pale, dark, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)
