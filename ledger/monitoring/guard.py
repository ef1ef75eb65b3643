"""Judging a candidate before it is appended: scores before and after, and the threshold."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import torch

from weightledger.ledger.monitoring.degradation import degradation
from weightledger.ledger.monitoring.evaluation import Evaluator
from weightledger.ledger.monitoring.process import memory_usage_mb
from weightledger.ledger.monitoring.traffic import Traffic
from weightledger.ledger.projection.projector import Changes, Projector
from weightledger.ledger.writing.plans import Verdict

logger = logging.getLogger(__name__)

REASON = "Automatic rollback due to performance degradation"


class MetricsGuard:
    """The automatic rollback of a manager.

    What can be measured of a candidate that serves no traffic yet is the evaluator's score and
    the process's memory; what was not measured is absent.
    """

    def __init__(
        self,
        projector: Projector,
        traffic: Traffic,
        evaluator: Evaluator | None,
        metrics: Sequence[str],
        threshold: float,
    ) -> None:
        self._projector = projector
        self._traffic = traffic
        self._evaluator = evaluator
        self._metrics = metrics
        self._threshold = threshold
        self._scored: tuple[bytes, dict[str, float]] | None = None

    @property
    def alone(self) -> bool:
        """Whether it looks at candidates and the live state: only an evaluator does."""
        return self._evaluator is not None

    def current(self) -> dict[str, float]:
        """What is known of the live state: traffic, memory, score, and the time in Unix seconds."""
        return {**self._traffic.metrics(), **_now(), **self._live_score()}

    def __call__(self, changes: Changes) -> Verdict:
        """Score the candidate and compare it with the live state."""
        before = self.current()
        if self._evaluator is None:
            return Verdict(before, _now())
        try:
            score = self._score(lambda: changes.prepared.module)
        except Exception as error:
            logger.exception("the evaluator failed on a candidate")
            reason = f"Automatic rollback: the evaluator failed on the candidate: {error!r}"
            return Verdict(before, _now(), reason, {"cause": "evaluator_failed"})
        after = {**_now(), **_finite(score)}
        found = degradation(before, score, self._metrics, self._threshold)
        if found is not None:
            evidence = {
                "cause": "degraded",
                **{k: v for k, v in asdict(found).items() if _is_finite(v)},
            }
            return Verdict(before, after, f"{REASON}: {found}", evidence)
        self._scored = (changes.state.value, score)
        return Verdict(before, after)

    def _live_score(self) -> Mapping[str, float]:
        """The evaluator's score of the live state; empty when it fails, for then none is known."""
        if self._evaluator is None:
            return {}
        scored = self._scored
        with self._projector.engine.lease() as live:
            if scored is None or scored[0] != live.digest:
                try:
                    scored = (live.digest, self._score(lambda: live.module))
                except Exception:
                    logger.exception("the evaluator failed on the live state")
                    return {}
                self._scored = scored
        return _finite(scored[1])

    def _score(self, module: Callable[[], torch.nn.Module]) -> dict[str, float]:
        assert self._evaluator is not None
        return {name: float(value) for name, value in self._evaluator(module()).items()}


def _now() -> dict[str, float]:
    return {"memory_usage_mb": memory_usage_mb(), "timestamp": time.time()}


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
