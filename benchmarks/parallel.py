"""What long work costs when two processes share it: verify, replay, and what they read.

    python -m benchmarks.parallel [--mib N] [--events N] [--ray]

A model of 1 GiB of float32 in 128 tensors, and 200 updates, each of 1 % of eight of them. Beside
the time by the clock stands the processor time of all processes, since on a busy machine the clock
says little. One process works on as many threads as there are cores, so that two of them can only
gain by the clock what those threads leave idle: beside it stands one process held to one core. With
--ray the same on a Ray cluster that is started for it.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import torch

from benchmarks.measure import Report
from weightledger import IncrementalUpdateRequest, Ledger

TENSORS, TOUCHED, SHARE = 128, 8, 100
GOAL_WALL, GOAL_CPU = 0.65, 1.1


def build(url: str, mib: int, events: int) -> None:
    """Write the history that the work is done on."""
    random = torch.Generator().manual_seed(3)
    elements = mib * (1 << 20) // 4 // TENSORS
    base = {
        f"layers.{n:03}.weight": torch.randn(elements, generator=random) for n in range(TENSORS)
    }
    with Ledger.open(url) as ledger:
        log = ledger.model("large", base=base, alpha=1e9)
        del base
        for number in range(events):
            first = number * TOUCHED
            # By gaps: a permutation of all elements would take longer than the update.
            gaps = torch.randint(1, 2 * SHARE, (elements // SHARE,), generator=random)
            where = gaps.cumsum(0)
            where = where[where < elements]
            log.apply_batch(
                [
                    IncrementalUpdateRequest(
                        f"layers.{(first + n) % TENSORS:03}.weight",
                        torch.randn(len(where), generator=random),
                        learning_rate=0.01,
                        indices=where,
                    )
                    for n in range(TOUCHED)
                ]
            )


def used() -> float:
    """Processor seconds of the commands that have ended, and of what they started."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def timed(url: str, *words: str, cores: int | None = None) -> tuple[float, float]:
    """Seconds by the clock and of processor time of a command, from its start to its end; `cores`
    holds it to the first so many."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cores)[:cores])  # a child begins where its parent may run
    started, before = time.perf_counter(), used()
    command = [sys.executable, "-m", "weightledger", *words, "--database", url]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finally:
        os.sched_setaffinity(0, all_cores)
    return time.perf_counter() - started, used() - before


def measure(report: Report, what: str, url: str, words: Sequence[str], kind: str) -> None:
    """Add what a command costs as one process and as two."""
    held, _ = timed(url, *words, cores=1)
    alone, alone_cpu = timed(url, *words)
    shared, shared_cpu = timed(url, *words, "--jobs", "2", "--executor", kind)
    report.add(f"{what}, one process", alone, "s")
    report.add(f"{what}, two", shared, "s", ratio=shared / alone, of="one process",
               goal=f"≤ {GOAL_WALL} ×", ok=shared <= GOAL_WALL * alone)  # fmt: skip
    report.add("  one process held to one core", held, "s")
    report.add("  two beside that", shared, "s", ratio=shared / held, of="one on one core")
    report.add("  processor time, one", alone_cpu, "s")
    if kind == "local":  # what Ray's own processes use is not told
        ratio = shared_cpu / alone_cpu
        report.add("  processor time, two", shared_cpu, "s", ratio=ratio, of="one process",
                   goal=f"≤ {GOAL_CPU} ×", ok=ratio <= GOAL_CPU)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--ray", action="store_true")
    args = parser.parse_args()
    report = Report("Long work, shared out")
    kind = "ray" if args.ray else "local"
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/large.db"
        build(url, args.mib, args.events)
        report.group = f"{args.mib} MiB, {args.events} events, {kind}"
        measure(report, "verify", url, ["verify"], kind)
        out = ["replay", "--to", "head", "-o", f"{folder}/out.safetensors"]
        measure(report, "replay into a file", url, out, kind)
    report.finish("parallel")


if __name__ == "__main__":
    main()
