"""Several processes writing one model: how equally, how late at worst, and how fast in all.

    python -m benchmarks.writers [--processes N] [--seconds S]

Each process opens the database for itself and applies kilobyte updates as fast as it can; one
process alone, in the same run, is what they are held against.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.audit import databases
from benchmarks.measure import Report
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.errors import LedgerError

SIDE = 16  # a kilobyte of fp32
PROCESSES = 6
MODEL = "m"
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


def race(url: str, processes: int, seconds: float) -> list[Written]:
    """What each of so many processes did, all at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["weightledger.ledger.ledger"])
    with context.Manager() as manager, context.Pool(processes) as pool:
        ready = manager.Barrier(processes)
        return pool.starmap(write, [(url, ready, seconds)] * processes, chunksize=1)


def measure(report: Report, name: str, url: str, processes: int, seconds: float) -> None:
    with Ledger.open(url) as ledger:
        ledger.model(MODEL, base={"w": torch.zeros(SIDE, SIDE)})
    (alone,) = race(url, 1, seconds)
    together = race(url, processes, seconds)
    report.group = f"{processes} processes on one model, {name}"
    rate = len(alone.took_ms) / seconds
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
