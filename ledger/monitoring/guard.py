"""Judging a candidate before it is appended: scores before and after, and the threshold."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import torch

from weightledger.ledger.config import EVALUATOR_TIMEOUT_S
from weightledger.ledger.engines import Engine
from weightledger.ledger.monitoring.collector import Collector
from weightledger.ledger.monitoring.degradation import degradation, unknown
from weightledger.ledger.monitoring.evaluation import Evaluator, Scores, scores_of
from weightledger.ledger.monitoring.metrics import EVALUATED
from weightledger.ledger.monitoring.pairing import paired
from weightledger.ledger.monitoring.process import memory_usage_mb
from weightledger.ledger.monitoring.time_limits import limited
from weightledger.ledger.projection.change import Change
from weightledger.ledger.writing.policy import Verdict

logger = logging.getLogger(__name__)

REASON = "Automatic rollback due to performance degradation"


class MetricsGuard:
    """The automatic rollback of a manager.

    What can be measured of a candidate that serves no traffic yet is the evaluator's score and
    the process's memory; what was not measured is absent. A candidate passes only by comparison:
    where the evaluator fails on either state, takes too long, or leaves out what is watched, it is
    refused. The threshold says how much worse a metric may be. With `alpha` above 0 a candidate is
    refused as well whose single items got worse by more than chance (`pairing`), however little;
    what that test says is in every event.
    """

    def __init__(
        self,
        engine: Engine,
        collector: Collector,
        evaluator: Evaluator | None,
        metrics: Sequence[str],
        threshold: float,
        *,
        alpha: float = 0.0,
        timeout_s: float = EVALUATOR_TIMEOUT_S,
    ) -> None:
        self._engine = engine
        self._collector = collector
        self._evaluator = None if evaluator is None else limited(evaluator, timeout_s)
        self._metrics = metrics
        self._threshold = threshold
        self._alpha = alpha
        self._scored: tuple[bytes, Scores] | None = None

    @property
    def alone(self) -> bool:
        """Whether it looks at candidates and the live state: only an evaluator does."""
        return self._evaluator is not None

    def current(self) -> dict[str, float]:
        """What is known of the live state: traffic, memory, score, and the time in Unix seconds."""
        score, _ = self._live_score()
        return {**self._measured(), **_finite(score.metrics)}

    def __call__(self, change: Change) -> Verdict:
        """Score the candidate and compare it with the live state."""
        if self._evaluator is None:  # nothing is done in between that would change the memory
            now = _now()
            return Verdict({**self._recent(), **now}, now)
        live, failed = self._live_score()
        before = {**self._measured(), **_finite(live.metrics)}
        try:
            score = self._score(lambda: change.prepared.module)
        except Exception as error:
            logger.exception("the evaluator failed on a candidate")
            reason = f"Automatic rollback: the evaluator failed on the candidate: {error!r}"
            return Verdict(before, _now(), reason, {"cause": "evaluator_failed"})
        after = {**_now(), **_finite(score.metrics)}
        watched = self._watched(live, score)
        pairs = [pair for metric in watched if (pair := paired(live, score, metric)) is not None]
        found = {"paired": [pair.evidence() for pair in pairs]} if pairs else {}
        if self._threshold or self._alpha:
            why = failed or unknown(live.metrics, score.metrics, watched)
            if why is not None:
                reason = f"Automatic rollback: the candidate has nothing to be compared with: {why}"
                return Verdict(before, after, reason, {"cause": "unknown", **found})
        worse = degradation(live.metrics, score.metrics, watched, self._threshold)
        if worse is not None:
            numbers = {k: v for k, v in asdict(worse).items() if _is_finite(v)}
            evidence = {"cause": "degraded", **numbers, **found}
            return Verdict(before, after, f"{REASON}: {worse}", evidence)
        for pair in pairs:
            # Each of several metrics gets its share of the chance to refuse a harmless update.
            if pair.p_worse <= self._alpha / len(pairs):
                evidence = {"cause": "worse", "alpha": self._alpha, **found}
                return Verdict(before, after, f"{REASON}: {pair}", evidence)
        self._scored = (change.state.value, score)
        return Verdict(before, after, evidence=found, evaluated=True)

    def _watched(self, live: Scores, score: Scores) -> list[str]:
        """The metrics that decide: those that were asked for, and all that only evaluators give."""
        given = (*live.metrics, *score.metrics)
        own = [name for name in given if name in EVALUATED]
        return list(dict.fromkeys([*self._metrics, *own]))

    def _measured(self) -> dict[str, float]:
        return {**self._recent(), **_now()}

    def _recent(self) -> dict[str, float]:
        with self._engine.lease() as live:
            seq = live.seq
        return self._collector.recent(seq)

    def _live_score(self) -> tuple[Scores, str | None]:
        """The evaluator's score of the live state; empty with the reason when it fails."""
        if self._evaluator is None:
            return Scores({}), None
        scored = self._scored
        with self._engine.lease() as live:
            digest = live.digest
        if scored is None or scored[0] != digest:
            try:
                digest, module = self._copy_of_live()
                scored = (digest, self._score(lambda: module))
            except Exception as error:
                logger.exception("the evaluator failed on the live state")
                return Scores({}), f"the evaluator failed on the live state: {error!r}"
            self._scored = scored
        return scored[1], None

    def _copy_of_live(self) -> tuple[bytes, torch.nn.Module]:
        """The digest of the live state, and a module in it that nobody else has."""
        while True:
            with self._engine.lease() as live:
                digest = live.digest
            module = self._engine.prepare({}).module
            with self._engine.lease() as live:
                if live.digest == digest:  # nothing was published meanwhile
                    return digest, module

    def _score(self, module: Callable[[], torch.nn.Module]) -> Scores:
        assert self._evaluator is not None
        return scores_of(self._evaluator(module()))


def _now() -> dict[str, float]:
    return {"memory_usage_mb": memory_usage_mb(), "timestamp": time.time()}


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
