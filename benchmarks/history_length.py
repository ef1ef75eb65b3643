"""What a long history costs: the same work on logs of a hundred to a million events.

    python -m benchmarks.history_length [--events N ...] [--rounds N] [--folder FOLDER]

Recording, rolling back, opening again and asking may cost what changed and how far back in the log
it lies, never how long the log is. Each log is real: the model opens, every state can be rebuilt,
and the shortest is verified bit by bit before anything is measured. With `--folder` the logs are
kept there, and taken up again if they are there already.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import replayable_log
from benchmarks.audit import databases, warm
from benchmarks.measure import Report
from benchmarks.replayable_log import MODEL, NAMED_EVERY, SIDE
from benchmarks.small_updates import own_databases
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.store import EventFilter

LENGTHS = (100, 10_000, 100_000, 1_000_000)
BACK = 10
PAGE = 50
GOAL = 2.0  # times what it takes on the shortest log

Figures = dict[str, float]
"""Median seconds by what was done."""


def measure(url: str, count: int, rounds: int) -> Figures:
    """Everything on one log, which grows by a few hundred events."""
    taken: dict[str, list[float]] = {}

    def timed(what: str, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        work()
        taken.setdefault(what, []).append(time.perf_counter() - started)

    other = {name: second for name, (_, second) in replayable_log.matrices().items()}
    for _ in range(max(rounds // 2, 3)):
        timed("open the ledger and the model, read a tensor", lambda: _opened(url))
        timed("open with the weights of some earlier state", lambda: _opened(url, other))
    with Ledger.open(url) as ledger:
        log = ledger.model(MODEL)
        store = log.history.store
        middle = count // 2
        if count > 2 * NAMED_EVERY:
            number = log.history.require(middle).counts.versions - 1
            named = store.by_number("versions", number)
        else:
            named = store.by_number("versions", 0)
        assert named is not None
        for turn in range(rounds):
            _step(log, turn)
            timed("record one small update", lambda turn=turn: _step(log, turn + 1))
            before = log.live.head
            for more in range(BACK):
                _step(log, turn + more)
            timed(f"roll back {BACK} updates", lambda seq=before.seq: log.rollback(f"seq:{seq}"))
            assert log.live.state.value == before.state_after
            timed("name the state", lambda: log.create_version("named"))
            timed("take the oldest name off the list", lambda: log.retire_versions(10))
            timed(
                f"audit: the last {PAGE} events",
                lambda: store.select(EventFilter(), limit=PAGE),
            )
            timed(
                f"audit: {PAGE} updates of one parameter before the middle",
                lambda: store.select(EventFilter(parameter="a", max_seq=middle), limit=PAGE),
            )
            timed(
                "one old version: found, and its state rebuilt",
                lambda name=named.name: log.history.state(name),
            )
            timed("the list of versions", log.versions)
            timed("parameters with their update counts", log.history.parameters)
        for turn in range(3):
            timed("roll back to that old version", lambda name=named.name: log.rollback(name))
            log.rollback(f"seq:{log.live.head.seq - 1}")
            timed("open and roll back to it", lambda name=named.name: _moved(url, name))
            log.catch_up()
            _step(log, turn)
    return {what: statistics.median(times) for what, times in taken.items()}


def _opened(url: str, base: dict[str, torch.Tensor] | None = None) -> None:
    with Ledger.open(url) as ledger:
        log = ledger.model(MODEL, base=base)
        log.projector.engine.tensor("a").sum()


def _moved(url: str, name: str) -> None:
    with Ledger.open(url) as ledger:
        ledger.model(MODEL).rollback(name)


def _step(log: Log, number: int) -> None:
    value = torch.full((SIDE, SIDE), float(number))
    log.apply(IncrementalUpdateRequest("a", value, update_type="replace"))


def verified(url: str) -> None:
    """Raise unless every bit of the log can be recomputed."""
    with Ledger.open(url) as ledger:
        found = ledger.model(MODEL).verify()
    if not found.ok:
        raise SystemExit(f"the log is not sound: {found.problem}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    lengths: list[int] = sorted(given.events)
    report = Report("The same work on logs of different lengths")
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for kind, server in stack.enter_context(databases(folder)).items():
            made = own_databases(kind, server, folder)
            found: dict[int, Figures] = {}
            for count in lengths:
                url = made(f"tiny{count}")
                started = time.perf_counter()
                with tempfile.TemporaryDirectory() as scratch:
                    replayable_log.load(url, count, Path(scratch))
                if count == lengths[0]:
                    verified(url)
                print(f"{kind}: {count:,} events made in {time.perf_counter() - started:.1f} s")
                warm(folder)
                found[count] = measure(url, count, given.rounds)
            for what in found[lengths[0]]:
                _add(report, f"{kind}: {what}", {n: found[n][what] for n in lengths})
    report.finish("history_length")


def _add(report: Report, what: str, took: dict[int, float]) -> None:
    shortest = min(took)
    for count, seconds in took.items():
        ratio = seconds / took[shortest]
        more = {} if count == shortest else {"ratio": ratio, "of": f"at {shortest:,}"}
        if count == max(took):
            more |= {"goal": f"≤ {GOAL:g} × at {shortest:,}", "ok": ratio <= GOAL}
        report.add(f"{what}, {count:,} events", 1000 * seconds, "ms", **more)


if __name__ == "__main__":
    main()
