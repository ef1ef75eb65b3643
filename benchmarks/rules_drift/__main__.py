"""Runs the experiment: rates on a seed of its own, then every way on every drift and seed."""

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from benchmarks.rules_drift.ledgered import learnt
from benchmarks.rules_drift.peers import PEERS
from benchmarks.rules_drift.report import Row, finish
from benchmarks.rules_drift.streams import DRIFTS, task
from benchmarks.rules_drift.ways import Way, ways

RATE_SEED = 1000
"""The stream, a turning one, on which rates are chosen; no figure is taken on it."""


@dataclass(frozen=True)
class Run:
    """One way over one stream."""

    way: Way
    rate: float | None
    drift: str
    seed: int


def run(one: Run) -> dict[str, float]:
    given = task(one.drift, one.seed)
    if one.way.rule is None:
        return {"accuracy": PEERS[one.way.name](given, one.rate or 0.0), "refused": 0.0}
    return learnt(one.way, one.rate, given, one.seed)


def prepare() -> None:
    """For each process: tensors are small, and refusals are what is counted."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)


def tried(pool: ProcessPoolExecutor, compared: Iterable[Way]) -> dict[str, dict[float, float]]:
    """Accuracy by rate for each way by name; a gated way takes the rate of the one without."""
    runs = [
        Run(way, rate, "turning", RATE_SEED)
        for way in compared
        if not way.gated
        for rate in way.rates
    ]
    found: dict[str, dict[float, float]] = {}
    for one, came in zip(runs, pool.map(run, runs), strict=True):
        assert one.rate is not None
        found.setdefault(one.way.name, {})[one.rate] = came["accuracy"]
    return found


def main(seeds: int = 5) -> None:
    compared: Sequence[Way] = ways()
    with ProcessPoolExecutor(os.cpu_count(), initializer=prepare) as pool:
        by_rate = tried(pool, compared)
        rows = {way.name: Row(way.name, by_rate.get(way.ungated, {})) for way in compared}
        runs = [
            Run(way, rows[way.name].rate, drift, seed)
            for drift in DRIFTS
            for seed in range(seeds)
            for way in compared
        ]
        for one, found in zip(runs, pool.map(run, runs), strict=True):
            rows[one.way.name].add(one.drift, found)
    finish(list(rows.values()), seeds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
