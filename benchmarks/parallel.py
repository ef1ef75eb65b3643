"""What long work costs when two processes share it: verify, replay, and what they read.

    python -m benchmarks.parallel [--mib N] [--events N] [--ray]

A model of 1 GiB of float32 in 128 tensors, and 400 updates, each of 1 % of eight of them. Beside
the time by the clock stands the processor time of all processes, since on a busy machine the clock
says little. With --ray the same on a Ray cluster that is started for it.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import Report
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.debug.parallel import save
from weightledger.ledger.history.reading import reading
from weightledger.ledger.parallel.choosing import executing

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
            log.apply_batch(
                [
                    IncrementalUpdateRequest(
                        f"layers.{(first + n) % TENSORS:03}.weight",
                        torch.randn(elements // SHARE, generator=random),
                        learning_rate=0.01,
                        indices=torch.randperm(elements, generator=random)[: elements // SHARE],
                    )
                    for n in range(TOUCHED)
                ]
            )


def used() -> float:
    """Processor seconds of this process and of its children that have ended."""
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of processor time."""
    started, before = time.perf_counter(), used()
    work()
    return time.perf_counter() - started, used() - before


def measure(report: Report, what: str, work: Callable[[str, int], object], kind: str) -> None:
    """Add what a piece of work costs one process and two."""
    alone, alone_cpu = timed(lambda: work("local", 1))
    shared, shared_cpu = timed(lambda: work(kind, 2))
    report.add(f"{what}, one process", alone, "s")
    report.add(f"{what}, two", shared, "s", ratio=shared / alone, of="one process",
               goal=f"≤ {GOAL_WALL} ×", ok=shared <= GOAL_WALL * alone)  # fmt: skip
    report.add("  processor time, one", alone_cpu, "s")
    if kind == "local":  # what Ray's own processes use is not told
        ratio = shared_cpu / alone_cpu
        report.add("  processor time, two", shared_cpu, "s", ratio=ratio, of="one process",
                   goal=f"≤ {GOAL_CPU} ×", ok=ratio <= GOAL_CPU)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--events", type=int, default=400)
    parser.add_argument("--ray", action="store_true")
    args = parser.parse_args()
    report = Report("Long work, shared out")
    kind = "ray" if args.ray else "local"
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/large.db"
        build(url, args.mib, args.events)
        report.group = f"{args.mib} MiB, {args.events} events, {kind}"

        def check(kind: str, jobs: int) -> None:
            with reading(url, "large") as history, executing(kind, jobs) as executor:  # type: ignore[arg-type]
                assert verify(history, executor=executor).ok

        def restore(kind: str, jobs: int) -> None:
            with reading(url, "large") as history, executing(kind, jobs) as executor:  # type: ignore[arg-type]
                save(history, "head", Path(folder) / "out.safetensors", executor)

        measure(report, "verify", check, kind)
        measure(report, "replay into a file", restore, kind)
    report.finish("parallel")


if __name__ == "__main__":
    main()
