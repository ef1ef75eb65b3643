"""From a policy to what decides: of two states side by side, or one after another."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from weightledger.ledger.monitoring.deciding.comparisons import (
    Alongside,
    Ceiling,
    Comparison,
    Concurrent,
    Objective,
    Succession,
)
from weightledger.ledger.monitoring.deciding.deciders import Panel, Watched, cost
from weightledger.ledger.monitoring.deciding.wagers import Array
from weightledger.ledger.monitoring.policies import RollbackPolicy

GAUGE = "memory_usage_mb"
IN_A_ROW = 10
"""Values of a gauge above its limit, one after the other, that are harm."""

_COUNTED = frozenset({"failed", "accuracy"})
_CONCURRENT = ("latency_ms", "throughput", "failed", "accuracy")

# Of all requests: how many more may fail before a state is no longer proven to be harmless.
_FAILURES = 0.01

Reference = Mapping[str, Array]
"""Values of an old state by metric."""


def side_by_side(policy: RollbackPolicy, metrics: Iterable[str], threshold: float) -> Panel:
    """Of two states that serve at the same time; the policy has a trial."""
    assert policy.trial is not None
    share = policy.trial.share
    tests: list[Watched] = []
    for metric in metrics:
        if metric not in _CONCURRENT:
            continue
        if metric in _COUNTED:
            tests.append(Watched(metric, Concurrent("event", share, _FAILURES)))
            continue
        margin = policy.margins.get(metric, threshold)
        tests += [Watched(metric, Concurrent(one, share, margin)) for one in ("typical", "tail")]
    return _panel(policy, tests, share)


def by_cohorts(policy: RollbackPolicy, metrics: Iterable[str], threshold: float) -> Panel:
    """Of two states that serve at the same time, each on replicas of its own."""
    tests: list[Watched] = []
    for metric in metrics:
        if metric in _COUNTED:
            margin = _FAILURES if metric == "failed" else policy.margins.get(metric, threshold)
            tests.append(Watched(metric, Alongside("event", margin)))
        elif metric in _CONCURRENT:
            margin = policy.margins.get(metric, threshold)
            tests += [Watched(metric, Alongside(one, margin)) for one in ("typical", "tail")]
    return _panel(policy, tests)


def one_after_another(
    policy: RollbackPolicy,
    metrics: Sequence[str],
    threshold: float,
    references: Mapping[str, Reference],
) -> Panel:
    """Of a state and those before it, by the name of the baseline.

    A baseline with fewer than `policy.minimum` values of a metric says nothing of it.
    """
    tests: list[Watched] = []
    for baseline, reference in references.items():
        for metric in metrics:
            known = reference.get(metric, np.empty(0))
            least = 1 if metric == GAUGE else policy.minimum
            if len(known) < least:
                continue
            before = (float(known.mean()), len(known))
            margin = policy.margins.get(metric, threshold)
            comparisons = _successors(metric, known, margin)
            wanted = IN_A_ROW if metric == GAUGE else None
            tests += [Watched(metric, one, baseline, before, wanted) for one in comparisons]
    return _panel(policy, tests)


def _successors(metric: str, known: Array, margin: float) -> list[Comparison]:
    if metric == GAUGE:
        return [Ceiling(float(np.median(known)) * (1 + margin), IN_A_ROW)]
    if metric == "accuracy":
        return [Succession("event", cost(metric, known), margin * float(known.mean()))]
    if metric == "failed":
        return [Succession("event", known)]
    costs = cost(metric, known)
    return [Succession("typical", costs, margin), Succession("tail", costs, margin)]


def _panel(policy: RollbackPolicy, tests: list[Watched], share: float | None = None) -> Panel:
    for metric, goal in policy.objectives.items():
        if metric == GAUGE:
            assert goal.limit is not None
            ceiling = Ceiling(goal.limit, IN_A_ROW)
            tests.append(Watched(metric, ceiling, "objective", minimum=IN_A_ROW))
        else:
            limit = goal.limit
            if limit is not None:
                limit = float(cost(metric, np.array([limit]))[0])
            tests.append(Watched(metric, Objective(goal.allowed, limit), "objective"))
    return Panel(tests, policy.alpha, policy.minimum, share)
