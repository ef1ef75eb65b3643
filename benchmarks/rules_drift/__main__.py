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


def rates(pool: ProcessPoolExecutor, all_ways: Iterable[Way]) -> dict[str, float | None]:
    """The best rate for each way by name; a gated way takes that of the way without a gate."""
    tried = [
        Run(way, rate, "turning", RATE_SEED)
        for way in all_ways
        if not way.gated
        for rate in way.rates
    ]
    best: dict[str, tuple[float, float]] = {}
    for one, found in zip(tried, pool.map(run, tried), strict=True):
        assert one.rate is not None
        best[one.way.name] = max(best.get(one.way.name, (0.0, 0.0)), (found["accuracy"], one.rate))
    return {name: rate for name, (_, rate) in best.items()}


def main(seeds: int = 5) -> None:
    compared: Sequence[Way] = ways()
    with ProcessPoolExecutor(os.cpu_count(), initializer=prepare) as pool:
        chosen = rates(pool, compared)
        runs = [
            Run(way, chosen.get(way.name.removesuffix(", gated")), drift, seed)
            for drift in DRIFTS
            for seed in range(seeds)
            for way in compared
        ]
        rows = {way.name: Row(way.name, chosen.get(way.name)) for way in compared}
        for one, found in zip(runs, pool.map(run, runs), strict=True):
            rows[one.way.name].rate = one.rate
            rows[one.way.name].add(one.drift, found)
    finish(list(rows.values()), seeds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
