"""How often a harmless update is undone, and how soon a harmful one: our deciders beside others.

Thousands of simulated roll-outs, each with the same requests for every decider: 2,000 served by the
old state, then 4,000 of which half meet the new one. Those that compare side by side see both
halves; those that compare after with before see all of the new state's and what was before. All
are asked after every window of 100 requests. The deciders are the product's own code, behind the
product's protocol; those of others do what their documentation says.

python -m benchmarks.monitoring_simulation [--runs 1000]
"""

import argparse
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measure import Report
from weightledger import DynamicModelManager, DynamicUpdateConfig, TorchEngine
from weightledger.ledger.monitoring.deciding.deciders import Decider, Ruling
from weightledger.ledger.monitoring.deciding.panels import one_after_another, side_by_side
from weightledger.ledger.monitoring.drift import DETECTORS, MetricStream, detector_of
from weightledger.ledger.monitoring.policies import preset
from weightledger.ledger.monitoring.significance import sign_test

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

WINDOW = 100
BEFORE = 2000
SIDE = 2000
THRESHOLD = 0.1  # auto_rollback_threshold's default, and the margin of every decider here
METRICS = ("latency_ms", "failed")
SEED = 2242
_BATCH = 250  # a thousand requests a second, four times a second


# What is simulated


@dataclass(frozen=True)
class Traffic:
    """Requests in the order they came: latency_ms [n] and failed [n], and which met the new
    state."""

    latency_ms: Array
    failed: Array
    new: Mask


@dataclass(frozen=True)
class Scenario:
    """One kind of roll-out. `latency` and `failing` give values for requests at times 0 to 1."""

    name: str
    goal: str
    harmful: bool
    latency: Callable[[np.random.Generator, Array, Mask], Array]
    failing: Callable[[np.random.Generator, Array, Mask], Array]

    def traffic(self, rng: np.random.Generator) -> tuple[Traffic, Traffic]:
        """Before the new state, and with it."""
        times = np.linspace(0, 1, BEFORE + 2 * SIDE)
        new = (times >= BEFORE / len(times)) & (rng.random(len(times)) < 0.5)
        latency, failed = self.latency(rng, times, new), self.failing(rng, times, new)
        parts = [np.split(one, [BEFORE]) for one in (latency, failed, new)]
        return Traffic(*(one[0] for one in parts)), Traffic(*(one[1] for one in parts))


def lognormal(sigma: float = 0.5, slower: float = 0.0) -> Callable[..., Array]:
    """Latencies around 20 ms."""

    def draw(rng: np.random.Generator, times: Array, new: Mask) -> Array:
        return 20 * rng.lognormal(0, sigma, len(times)) * np.where(new, 1 + slower, 1)

    return draw


def drifting(by: float) -> Callable[..., Array]:
    """The load rises meanwhile, and everything gets that much slower."""
    return lambda rng, times, new: (
        lognormal()(rng, times, new) * (1 + by * np.minimum(1, 2 * times))
    )


def daily(swing: float) -> Callable[..., Array]:
    """Two and a half days, slower by noon."""

    def draw(rng: np.random.Generator, times: Array, new: Mask) -> Array:
        return lognormal()(rng, times, new) * (1 + swing * np.sin(5 * np.pi * times))

    return draw


def pareto(rng: np.random.Generator, times: Array, new: Mask) -> Array:
    """Latencies without a variance."""
    return 10 * (1 + rng.pareto(1.5, len(times)))


def slow_tail(rng: np.random.Generator, times: Array, new: Mask) -> Array:
    """One request in ten takes five times as long on the new state."""
    slow = new & (rng.random(len(times)) < 0.1)
    return lognormal()(rng, times, new) * np.where(slow, 5, 1)


def bursts(rng: np.random.Generator, times: Array, new: Mask) -> Array:
    """Requests near each other are slow together."""
    noise = rng.normal(0, 1, len(times) // 100 + 1).repeat(100)[: len(times)]
    return lognormal()(rng, times, new) * np.exp(0.3 * noise)


def failing(old: float, added: float = 0.0) -> Callable[..., Array]:
    """A share of requests fails."""

    def draw(rng: np.random.Generator, times: Array, new: Mask) -> Array:
        return (rng.random(len(times)) < old + added * new).astype(float)

    return draw


QUIET = "≤ 1 %"
SCENARIOS = (
    Scenario("no change", QUIET, False, lognormal(), failing(0.01)),
    Scenario("no change, load drifts by 8 %", QUIET, False, drifting(0.08), failing(0.01)),
    Scenario("no change, load drifts by 40 %", QUIET, False, drifting(0.4), failing(0.01)),
    Scenario("no change, heavy tails (σ 1.2)", QUIET, False, lognormal(1.2), failing(0.01)),
    Scenario("no change, no variance (Pareto 1.5)", QUIET, False, pareto, failing(0.01)),
    Scenario("no change, daily cycle ± 30 %", QUIET, False, daily(0.3), failing(0.01)),
    Scenario("no change, bursts", QUIET, False, bursts, failing(0.01)),
    Scenario("3 % slower, which is no harm", QUIET, False, lognormal(slower=0.03), failing(0.01)),
    Scenario("25 % slower", "≥ 99 %", True, lognormal(slower=0.25), failing(0.01)),
    Scenario("25 % slower, heavy tails (σ 1)", "", True, lognormal(1.0, 0.25), failing(0.01)),
    Scenario("one in ten 5 times slower", "≥ 99 %", True, slow_tail, failing(0.01)),
    Scenario("errors 0 → 2 %, 1,000 a side", "≥ 99 %", True, lognormal(), failing(0, 0.02)),
)
_AT_MOST = {"errors 0 → 2 %, 1,000 a side": 1000}


# Who decides


@dataclass
class Bare:
    """The specification's rule as it is written: a window's mean against that before the update."""

    before: dict[str, Array]
    means: dict[str, float] = field(default_factory=dict)

    def observe(self, metric: str, values: Array, new: Mask) -> None:
        own = values[new]
        if len(own):
            self.means[metric] = float(own.mean())

    def ruling(self) -> Ruling:
        for metric, after in self.means.items():
            before = float(self.before[metric][-WINDOW:].mean())
            change = (after - before) / before if before else after
            if change > THRESHOLD:
                return Ruling("harmful", metric)
        return Ruling("undecided")


def mann_whitney(new: Array, old: Array) -> float:
    """The one-sided p of "new is larger", by the normal approximation with ties counted."""
    n, m, total = len(new), len(old), len(new) + len(old)
    known = np.sort(old)
    below = np.searchsorted(known, new, "left") + np.searchsorted(known, new, "right")
    u = float(below.sum()) / 2 - n * m / 2
    counts = np.array([new.sum() + old.sum(), total - new.sum() - old.sum()])  # of 1 and 0
    tied = set(known[[0, -1]]) <= {0.0, 1.0}  # failures; latencies have no ties
    ties = float((counts**3 - counts).sum()) / (total * (total - 1)) if tied else 0.0
    variance = n * m / 12 * (total + 1 - ties)
    if not variance > 0:
        return 1.0
    return 0.5 * math.erfc(u / math.sqrt(2 * variance))


@dataclass
class MannWhitney:
    """Kayenta's judge, asked again after each window: 98 % confidence, and an effect above 10 %."""

    new: dict[str, list[Array]] = field(default_factory=dict)
    old: dict[str, list[Array]] = field(default_factory=dict)

    def observe(self, metric: str, values: Array, new: Mask) -> None:
        self.new.setdefault(metric, []).append(values[new])
        self.old.setdefault(metric, []).append(values[~new])

    def ruling(self) -> Ruling:
        for metric in self.new:
            new, old = np.concatenate(self.new[metric]), np.concatenate(self.old[metric])
            if len(new) < WINDOW or len(old) < WINDOW:
                continue
            p = mann_whitney(new, old)
            if p < 0.02 and old.mean() and new.mean() / old.mean() > 1 + THRESHOLD:
                return Ruling("harmful", metric)
        return Ruling("undecided")


@dataclass
class InARow:
    """Argo's way: a metric that fails in `most` windows in a row."""

    most: int = 5
    failed: dict[str, int] = field(default_factory=dict)

    def observe(self, metric: str, values: Array, new: Mask) -> None:
        after, before = values[new], values[~new]
        if not len(after) or not len(before):
            return
        worse = after.mean() > before.mean() * (1 + THRESHOLD)
        self.failed[metric] = self.failed.get(metric, 0) + 1 if worse else 0

    def ruling(self) -> Ruling:
        for metric, failures in self.failed.items():
            if failures >= self.most:
                return Ruling("harmful", metric)
        return Ruling("undecided")


Make = Callable[[Traffic], Decider]


def _known(before: Traffic) -> dict[str, Array]:
    return {"latency_ms": before.latency_ms, "failed": before.failed}


def _specification(before: Traffic) -> Decider:
    references = {"parent": _known(before)}
    return one_after_another(preset("specification"), METRICS, THRESHOLD, references)


DECIDERS: dict[str, tuple[Make, bool]] = {
    "ours, safe (side by side)": (
        lambda before: side_by_side(preset("safe"), METRICS, THRESHOLD),
        True,
    ),
    "ours, specification (after and before)": (_specification, False),
    "the specification's bare rule": (lambda before: Bare(_known(before)), False),
    "Mann-Whitney each window (Kayenta)": (lambda before: MannWhitney(), True),
    "5 windows in a row (Argo)": (lambda before: InARow(), True),
}


@dataclass(frozen=True)
class Outcome:
    """Whether an update was undone, and after how many requests that met it."""

    undone: bool
    requests: int


def decided(decider: Decider, during: Traffic, *, beside: bool, most: int) -> Outcome:
    """Feed windows until there is a verdict, or `most` requests met the new state."""
    keep = np.ones(len(during.new), bool) if beside else during.new
    new, served = during.new[keep], 0
    values = {"latency_ms": during.latency_ms[keep], "failed": during.failed[keep]}
    for start in range(0, len(new), WINDOW):
        window = slice(start, start + WINDOW)
        served += int(new[window].sum())
        if served > most:
            break
        for metric in METRICS:
            decider.observe(metric, values[metric][window], new[window])
        if decider.ruling().known == "harmful":
            return Outcome(True, served)
    return Outcome(False, served)


def simulate(name: str, runs: range) -> dict[str, list[Outcome]]:
    """One scenario with every decider, on the same requests."""
    scenario = next(one for one in SCENARIOS if one.name == name)
    most = _AT_MOST.get(name, SIDE)
    outcomes: dict[str, list[Outcome]] = {who: [] for who in DECIDERS}
    for run in runs:
        rng = np.random.default_rng([SEED, SCENARIOS.index(scenario), run])
        before, during = scenario.traffic(rng)
        for who, (make, beside) in DECIDERS.items():
            outcomes[who].append(decided(make(before), during, beside=beside, most=most))
    return outcomes


# What has another form than requests


def answers(runs: int, *, worse: float, items: int = 500) -> dict[str, float]:
    """An evaluator's items, old and new: 1 % get better, 1 % and `worse` get worse.

    The share of candidates that are refused: by the exact test of pairs, and by the bare rule.
    """
    rng = np.random.default_rng([SEED, 100, int(1000 * worse)])
    exact = bare = 0
    for _ in range(runs):
        change = rng.random(items)
        better, worse_ones = int((change < 0.01).sum()), int((change > 0.99 - worse).sum())
        exact += sign_test(worse_ones, better) <= 0.01
        bare += (worse_ones - better) / items / 0.9 > THRESHOLD
    return {"ours (exact sign test)": exact / runs, "the specification's bare rule": bare / runs}


def leak(runs: int, *, by: float) -> tuple[dict[str, float], float]:
    """Memory that grows by `by` with each of 100 updates: the share of runs in which it is caught
    before it has doubled, and the largest at which ours caught it, in times of the start."""
    rng = np.random.default_rng([SEED, 200, int(1000 * by)])
    caught = {"ours (since the last named version)": 0, "the specification's bare rule": 0}
    largest = 0.0
    policy = preset("specification")
    for _ in range(runs):
        size, bare, ours = 1000.0, False, False
        first = size * (1 + rng.normal(0, 0.01, 60))
        panel = one_after_another(
            policy, ("memory_usage_mb",), THRESHOLD, {"version": {"memory_usage_mb": first}}
        )
        before = first
        while size < 2000 and not (bare and ours) and size * (1 + by) ** 1 <= 2000:
            size *= 1 + by
            after = size * (1 + rng.normal(0, 0.01, 60))
            panel.observe("memory_usage_mb", after, np.ones(60, bool))
            if not ours and panel.ruling().known == "harmful":
                ours, largest = True, max(largest, size / 1000)
            bare = bare or after.mean() / before.mean() > 1 + THRESHOLD
            before = after
            if by == 0 and rng.random() < 0.02:  # some 50 updates in all
                break
        caught["ours (since the last named version)"] += ours
        caught["the specification's bare rule"] += bare
    return {who: count / runs for who, count in caught.items()}, largest


Draw = Callable[[np.random.Generator, Array], Array]
"""Values of a stream at times 0 to 1; what drifts begins to at .2."""

_LATE = 0.2
_STREAM = 5000


def _shifting(by: float, over: float = 0.0) -> Draw:
    """Lognormal values that become that much larger, at once or over a while."""

    def draw(rng: np.random.Generator, times: Array) -> Array:
        grown = np.clip((times - _LATE) / over, 0, 1) if over else (times >= _LATE).astype(float)
        return rng.lognormal(3, 0.5, len(times)) * (1 + by * grown)

    return draw


def _answering(right: float, later: float) -> Draw:
    """Answers that are right, 1, or not."""
    return lambda rng, times: (
        rng.random(len(times)) < np.where(times >= _LATE, later, right)
    ).astype(float)


STREAMS: dict[str, tuple[bool, Draw]] = {
    "no drift": (False, _shifting(0.0)),
    "no drift, no variance (Pareto 1.5)": (False, lambda rng, times: rng.pareto(1.5, len(times))),
    "no drift, one right in ten is wrong": (False, _answering(0.9, 0.9)),
    "+ 25 % at once": (True, _shifting(0.25)),
    "+ 25 % by and by": (True, _shifting(0.25, 0.4)),
    "right answers .9 → .8": (True, _answering(0.9, 0.8)),
}


def drifted(name: str, runs: int, detector: str) -> tuple[float, float]:
    """The share of streams of 5,000 values with an alert, and after how many values that drifted
    (median); river's detector at its defaults, behind the product's ranks."""
    make = detector_of(detector)
    times = np.linspace(0, 1, _STREAM)
    drifts, draw = STREAMS[name]
    late = int(_LATE * _STREAM) if drifts else 0
    alerts, after = 0, []
    for run in range(runs):
        rng = np.random.default_rng([SEED, 500, list(STREAMS).index(name), run])
        stream = MetricStream("custom.x", detector, make)
        values = draw(rng, times)
        for start in range(0, _STREAM, WINDOW):
            if stream.take(values[start : start + WINDOW]) is not None and start >= late:
                alerts += 1
                after.append(start + WINDOW - late)
                break
    return alerts / runs, float(np.median(after)) if after else 0.0


def not_numbers(runs: int) -> tuple[float, int]:
    """Updates that would put a NaN somewhere into a served model: the share that is refused, and
    how many requests met one."""
    rng = np.random.default_rng([SEED, 300])
    refused = met = 0
    with tempfile.TemporaryDirectory() as folder:
        module = torch.nn.Linear(16, 4)
        config = DynamicUpdateConfig(backup_dir=folder)
        manager = DynamicModelManager(TorchEngine(module), "m", config=config)
        for _ in range(runs):
            state = {name: tensor.clone() for name, tensor in manager.log.state().items()}
            tensor = state["weight" if rng.random() < 0.5 else "bias"].view(-1)
            tensor[int(rng.integers(len(tensor)))] = math.nan
            refused += manager.log.record(state).kind == "update_rejected"
            with manager.lease() as live:
                met += not bool(torch.isfinite(live.module(torch.ones(16))).all())
        manager.close()
    return refused / runs, met


def cost_us(make: Make, *, beside: bool) -> float:
    """Processor time of deciding, in µs a request, in batches as the collecting thread has them."""
    rng = np.random.default_rng([SEED, 400])
    before, during = SCENARIOS[0].traffic(rng)
    keep = np.ones(len(during.new), bool) if beside else during.new
    decider, started = make(before), time.process_time()
    for start in range(0, int(keep.sum()), _BATCH):
        window = slice(start, start + _BATCH)
        for metric, values in (("latency_ms", during.latency_ms), ("failed", during.failed)):
            decider.observe(metric, values[keep][window], during.new[keep][window])
        decider.ruling()
    return 1e6 * (time.process_time() - started) / int(keep.sum())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    report = Report(f"Monitoring, {runs} simulated roll-outs each")
    started = time.perf_counter()
    halves = [range(runs // 2), range(runs // 2, runs)]
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        parts = {
            one.name: [pool.submit(simulate, one.name, half) for half in halves]
            for one in SCENARIOS
        }
        for scenario in SCENARIOS:
            results = [part.result() for part in parts[scenario.name]]
            report.group = scenario.name
            for who in DECIDERS:
                outcomes = [outcome for part in results for outcome in part[who]]
                _row(report, scenario, who, outcomes)
    for name, worse, goal in (
        ("accuracy as it was, n = 500", 0.0, QUIET),
        ("accuracy − 5 points, n = 500", 0.05, "≥ 95 %"),
    ):
        report.group = name
        for who, share in answers(runs, worse=worse).items():
            _share(report, who, share, goal if who.startswith("ours") else "", worse > 0)
    for name, by, goal in (
        ("memory as it was, 50 updates", 0.0, QUIET),
        ("memory + 1 % an update, before it doubled", 0.01, "≥ 99 %"),
    ):
        report.group = name
        shares, largest = leak(runs, by=by)
        for who, share in shares.items():
            _share(report, who, share, goal if who.startswith("ours") else "", by > 0)
        if by:
            report.add(
                "ours, at the latest", largest, "times the start", goal="< 2", ok=largest < 2
            )
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        looked = {
            (name, detector): pool.submit(drifted, name, runs, detector)
            for name in STREAMS
            for detector in DETECTORS
        }
        for (name, detector), part in looked.items():
            share, after = part.result()
            drifts, _ = STREAMS[name]
            report.group = f"drift: {name}"
            words = f"{detector}, after {after:.0f} values" if drifts and after else detector
            hit = "≥ 99 %" if name.startswith("+") else ""
            goal = (hit if drifts else QUIET) if detector == "adwin" else ""
            _share(report, words, share, goal, drifts)
    logging.disable(logging.WARNING)  # of each refusal
    report.group = "NaN in the weights"
    refused, met = not_numbers(runs)
    _share(report, "ours, any policy but off", refused, "≥ 100 %", True)
    report.add("requests that met one", met, "", goal="0", ok=met == 0)
    report.group = "Cost of deciding, a request, in batches of 250"
    for who, (make, beside) in DECIDERS.items():
        if who.startswith("ours"):
            report.add(who, cost_us(make, beside=beside), "µs")
    report.finish("monitoring_simulation")
    print(f"took {time.perf_counter() - started:.0f} s")


def _row(report: Report, scenario: Scenario, who: str, outcomes: list[Outcome]) -> None:
    share = sum(one.undone for one in outcomes) / len(outcomes)
    soon = [one.requests for one in outcomes if one.undone]
    what = who
    if scenario.harmful and soon:
        what += f", after {np.median(soon):.0f} requests"
    goal = scenario.goal if who.startswith("ours, safe") else ""
    _share(report, what, share, goal, scenario.harmful)


def _share(report: Report, what: str, share: float, goal: str, harmful: bool) -> None:
    limit = float(goal.split()[1]) / 100 if goal else None
    held = None if limit is None else (share >= limit if harmful else share <= limit)
    report.add(what, 100 * share, "%", goal=goal, ok=held)


if __name__ == "__main__":
    main()
