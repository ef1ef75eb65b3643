"""What came out: a table, JSON, and a plot."""

import json
import statistics
from dataclasses import dataclass, field
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import RESULTS, machine
from benchmarks.rules_drift.streams import DRIFTS
from benchmarks.rules_drift.ways import GATED


@dataclass
class Row:
    """One way's runs, by drift; `tried` is what each learning rate came to beforehand."""

    way: str
    tried: dict[float, float]
    accuracies: dict[str, list[float]] = field(default_factory=dict)
    refused: dict[str, list[float]] = field(default_factory=dict)

    @property
    def rate(self) -> float | None:
        """The best of those tried, the smaller of equals."""
        return max(self.tried, key=lambda rate: self.tried[rate], default=None)

    def add(self, drift: str, found: dict[str, float]) -> None:
        self.accuracies.setdefault(drift, []).append(found["accuracy"])
        self.refused.setdefault(drift, []).append(found["refused"])

    def mean(self, drift: str) -> float:
        return statistics.mean(self.accuracies[drift])

    def spread(self, drift: str) -> float:
        """The standard deviation over the seeds."""
        return statistics.pstdev(self.accuracies[drift])

    def refusals(self, drift: str) -> float:
        return statistics.mean(self.refused[drift])

    def as_json(self) -> dict[str, Any]:
        drifts = {
            drift: {
                "accuracy": self.mean(drift),
                "spread": self.spread(drift),
                "refused": self.refusals(drift),
                "by_seed": self.accuracies[drift],
            }
            for drift in DRIFTS
        }
        return {"way": self.way, "learning_rate": self.rate, "tried": self.tried, **drifts}


def finish(rows: list[Row], seeds: int) -> None:
    """Print the table; write `rules_drift.json` and `rules_drift.svg`."""
    console = Console(width=130)
    console.print(_table(rows))
    RESULTS.mkdir(exist_ok=True)
    body = {"seeds": seeds, "machine": machine(), "rows": [row.as_json() for row in rows]}
    written = RESULTS / "rules_drift.json"
    written.write_text(json.dumps(body, indent=1) + "\n")
    drawn = RESULTS / "rules_drift.svg"
    drawn.write_text(plot(rows))
    console.print(f"written to {written} and {drawn}")


def _table(rows: list[Row]) -> Table:
    table = Table("last layer learns by", "rate", *DRIFTS, "windows refused, turning")
    table.title = "Accuracy over the stream"
    for row in rows:
        figures = (f"{row.mean(drift):.3f} ± {row.spread(drift):.3f}" for drift in DRIFTS)
        rate = "" if row.rate is None else f"{row.rate:g}"
        table.add_row(row.way, rate, *figures, f"{row.refusals('turning'):.0%}")
    return table


# The plot: a panel for each drift, a line for each way, frozen as the line to beat.

_NAMES, _PANEL, _GAP, _LINE, _TOP = 190, 250, 24, 17, 46


def plot(rows: list[Row]) -> str:
    """An SVG: dots are means, bars one standard deviation either side, hollow dots gated ways."""
    height = _TOP + _LINE * len(rows) + 12
    width = _NAMES + len(DRIFTS) * (_PANEL + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for place, row in enumerate(rows):
        y = _TOP + _LINE * place + 4
        parts.append(f'<text x="{_NAMES - 8}" y="{y}" text-anchor="end">{escape(row.way)}</text>')
    stands = next(row for row in rows if row.way == "frozen")
    for panel, drift in enumerate(DRIFTS):
        left = _NAMES + panel * (_PANEL + _GAP)
        parts += _panel(rows, drift, left, height, stands.mean(drift))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(rows: list[Row], drift: str, left: int, height: int, stands: float) -> list[str]:
    bottom = height - 10
    parts = [f'<text x="{left + _PANEL / 2}" y="14" text-anchor="middle">{drift}</text>']
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + tick * _PANEL
        parts.append(f'<line x1="{x}" x2="{x}" y1="34" y2="{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="30" text-anchor="middle" fill="#666">{tick:g}</text>')
    x = left + stands * _PANEL
    parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="34" y2="{bottom}" stroke="#c33"/>')
    for place, row in enumerate(rows):
        y, mean, spread = _TOP + _LINE * place, row.mean(drift), row.spread(drift)
        low, high = (left + _PANEL * edge for edge in (mean - spread, mean + spread))
        fill = "white" if row.way.endswith(GATED) else "#246"
        parts.append(
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="#246"/>'
            f'<circle cx="{left + _PANEL * mean:.1f}" cy="{y}" r="3.5" fill="{fill}" '
            'stroke="#246"/>'
        )
    return parts
