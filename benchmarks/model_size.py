"""What an update costs on models of different sizes: one scalar of one small parameter.

    python -m benchmarks.model_size [--modules N ...] [--rounds N]

A model of N modules is served in versions; one parameter of it is updated, durable in SQLite and
shown to readers. The processor's time may depend on what changes, never on how many modules the
model has. Sizes are measured in turns, so that noise hits all alike.
"""

import argparse
import contextlib
import gc
import statistics
import tempfile
import time
from pathlib import Path

from torch import nn

from benchmarks.measure import Report
from weightledger import IncrementalUpdateRequest, Ledger, Log, TorchEngine

MODULES = (10, 100, 1_000, 4_000)
WARM = 40
GOAL = 1.3  # times the smallest model


def model(modules: int) -> nn.Module:
    """So many small modules, in blocks of ten as in a real model."""
    blocks = [
        nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(10)])
        for _ in range(modules // 10)
    ]
    return nn.Sequential(*blocks)


def update(log: Log, number: int) -> float:
    """Seconds of processor time of one update."""
    block, layer = number % (len(log.specs) // 10), number % 10
    request = IncrementalUpdateRequest(f"{block}.{layer}.weight", 1.0, 0.001)
    started = time.process_time()
    log.apply(request)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modules", type=int, nargs="+", default=MODULES)
    parser.add_argument("--rounds", type=int, default=300)
    given = parser.parse_args()
    report = Report("One small update of models of different sizes")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        logs: dict[int, Log] = {}
        for modules in sorted(given.modules):
            ledger = stack.enter_context(Ledger.open(f"sqlite:///{folder}/{modules}.db"))
            logs[modules] = ledger.model("sized", engine=TorchEngine(model(modules)))
        taken: dict[int, list[float]] = {modules: [] for modules in logs}
        gc.collect()
        gc.freeze()  # the models themselves are no garbage to look through
        for turn in range(-WARM, given.rounds):
            for modules, log in logs.items():
                seconds = update(log, turn)
                if turn >= 0:
                    taken[modules].append(seconds)
        gc.unfreeze()
        for log in logs.values():
            assert log.verify_live()[1].value == log.live.state.value
    least = min(taken)
    for modules, times in taken.items():
        seconds = statistics.median(times)
        ratio = seconds / statistics.median(taken[least])
        more = {} if modules == least else {"ratio": ratio, "of": f"at {least:,}"}
        if modules == max(taken):
            more |= {"goal": f"≤ {GOAL:g} × at {least:,}", "ok": ratio <= GOAL}
        report.add(f"one scalar, {modules:,} modules", 1000 * seconds, "ms CPU", **more)
    report.finish("model_size")


if __name__ == "__main__":
    main()
