"""Several processes writing one model: how equally, how late at worst, and how fast in all.

    python -m benchmarks.writers [--processes N] [--seconds S]

Each process opens the database for itself and applies kilobyte updates as fast as it can; one
process alone, in the same run, is what they are held against. The limit, in the same run, is
`benchmarks.bare_writers`: as many processes that take turns and do nothing but run the statements.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.audit import databases
from benchmarks.bare_writers import one_update, take_turns
from benchmarks.measure import Report
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.errors import LedgerError

SIDE = 16  # a kilobyte of fp32
PROCESSES = 6
MODEL = "m"
T = TypeVar("T")
FAIREST, LATEST = 0.8, 20
SHARE = {"sqlite": 0.5, "postgresql": 0.8}  # of one writer's rate


@dataclass(frozen=True, slots=True)
class Written:
    """What one process did: milliseconds of each update, and the writes that failed."""

    took_ms: tuple[float, ...]
    refused: int


def write(url: str, ready: Any, seconds: float) -> Written:
    """Apply updates for so long, from the moment when every process is ready."""
    torch.set_num_threads(1)
    data = torch.ones(SIDE, SIDE)
    took: list[float] = []
    refused = 0
    with Ledger.open(url) as ledger:
        log = ledger.model(MODEL)
        log.apply(IncrementalUpdateRequest("w", data))
        ready.wait()
        until = time.perf_counter() + seconds
        while (started := time.perf_counter()) < until:
            try:
                log.apply(IncrementalUpdateRequest("w", data))
            except LedgerError:
                refused += 1
            took.append((time.perf_counter() - started) * 1000)
    return Written(tuple(took), refused)


def race(
    work: Callable[..., T], processes: int, url: str, seconds: float, *more: object
) -> list[T]:
    """What `work(url, ready, seconds, *more)` gave in each of so many processes, all at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["weightledger.ledger.ledger", "benchmarks.bare_writers"])
    with context.Manager() as manager, context.Pool(processes) as pool:
        ready = manager.Barrier(processes)
        return pool.starmap(work, [(url, ready, seconds, *more)] * processes, chunksize=1)


def measure(report: Report, name: str, url: str, processes: int, seconds: float) -> None:
    with Ledger.open(url) as ledger:
        ledger.model(MODEL, base={"w": torch.zeros(SIDE, SIDE)})
    (alone,) = race(write, 1, url, seconds)
    together = race(write, processes, url, seconds)
    update = one_update(url, SIDE)
    (bare_alone,) = race(take_turns, 1, url, seconds, update)
    bare = race(take_turns, processes, url, seconds, update)
    report.group = f"{processes} processes on one model, {name}"
    rate, bare_rate = len(alone.took_ms) / seconds, len(bare_alone) / seconds
    floor = sum(map(len, bare)) / seconds
    report.add("one bare writer alone", bare_rate, "/s")
    report.add(
        f"limit: {processes} bare writers that take turns",
        floor,
        "/s",
        ratio=floor / bare_rate,
        of="one bare writer",
    )
    report.add("one writer alone", rate, "/s")
    total = sum(len(one.took_ms) for one in together) / seconds
    share = SHARE[name]
    report.add(
        f"{processes} writers together",
        total,
        "/s",
        ratio=total / rate,
        of="one writer",
        goal=f"≥ {share:.0%}",
        ok=total >= share * rate,
        limit=total / floor,
        limit_of="bare in turns",
    )
    counts = sorted(len(one.took_ms) for one in together)
    report.add(
        "slowest writer",
        counts[0] / seconds,
        "/s",
        ratio=counts[0] / counts[-1],
        of="fastest",
        goal=f"≥ {FAIREST:.0%}",
        ok=counts[0] >= FAIREST * counts[-1],
    )
    worst = max(statistics.quantiles(one.took_ms, n=100)[98] for one in together)
    middle = statistics.median(ms for one in together for ms in one.took_ms)
    report.add(
        "worst writer's p99",
        worst,
        "ms",
        ratio=worst / middle,
        of="p50",
        goal=f"≤ {LATEST} ×",
        ok=worst <= LATEST * middle,
    )
    refused = sum(one.refused for one in together)
    report.add("writes refused", refused, "", goal="0", ok=refused == 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    report = Report("Several processes writing one model")
    with tempfile.TemporaryDirectory() as folder, databases(Path(folder)) as urls:
        for name, url in urls.items():
            measure(report, name, url, args.processes, args.seconds)
    report.finish("writers")


if __name__ == "__main__":
    main()
