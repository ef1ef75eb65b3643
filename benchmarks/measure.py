"""How things are measured: interleaved rounds, medians, one table, JSON with the machine."""

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """One line of the table: what was measured, and what it is held against.

    `goal` is the figure to hold, in words; `ok` whether it was held, None where there is none.
    `limit` is the value in times of the least this machine could do it in, `limit_of` what that is.
    """

    what: str
    value: float
    unit: str
    ratio: float | None = None
    of: str = ""
    goal: str = ""
    ok: bool | None = None
    limit: float | None = None
    limit_of: str = ""
    group: str = ""


@dataclass
class Report:
    """All rows of a run, and the machine; `group` is the heading that further rows stand under."""

    title: str
    rows: list[Row] = field(default_factory=list)
    group: str = ""

    def add(self, what: str, value: float, unit: str, **more: Any) -> None:
        self.rows.append(Row(what, value, unit, group=self.group, **more))

    def finish(self, name: str) -> None:
        """Print the table and write the JSON."""
        self.show()
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        body = {"title": self.title, "machine": machine(), "rows": [asdict(r) for r in self.rows]}
        path.write_text(json.dumps(body, indent=1) + "\n")
        Console().print(f"written to {path}")

    def show(self) -> None:
        """Print the table."""
        limits = any(row.limit is not None for row in self.rows)
        table = Table(title=self.title)
        for column in ("what", "value", "ratio", "÷ limit", "goal", "held"):
            if limits or column != "÷ limit":
                right = column in ("value", "ratio", "÷ limit")
                table.add_column(column, justify="right" if right else "left")
        group = ""
        for row in self.rows:
            if row.group != group:
                group = row.group
                table.add_section()
                table.add_row(f"[bold]{group}")
            what, value, ratio, limit, goal, held = cells(row)
            table.add_row(what, value, ratio, *([limit] if limits else []), goal, held)
        Console(emoji=False, width=180 if limits else 150).print(table)


def cells(row: Row) -> tuple[str, str, str, str, str, str]:
    """A row as it is printed: what, value, ratio, ÷ limit, goal, held."""
    ratio = f"{row.ratio:.2f} × {row.of}" if row.ratio is not None else ""
    limit = f"{row.limit:.2f} × {row.limit_of}" if row.limit is not None else ""
    held = {True: "yes", False: "no", None: ""}[row.ok]
    return row.what, f"{row.value:,.4g} {row.unit}", ratio, limit, row.goal, held


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def interleaved(rounds: int, **runs: Callable[[int], object]) -> dict[str, float]:
    """Median seconds of each run; every round runs all of them once, so noise hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for n in range(rounds):
        for name, run in runs.items():
            with clock() as elapsed:
                run(n)
            taken[name].append(elapsed())
    return {name: statistics.median(times) for name, times in taken.items()}


@contextmanager
def clock() -> Iterator[Callable[[], float]]:
    """Seconds from here to the end of the block, without a garbage collection inside."""
    gc.collect()
    gc.disable()
    started = time.perf_counter()
    ended = started
    try:
        yield lambda: ended - started
    finally:
        ended = time.perf_counter()
        gc.enable()
