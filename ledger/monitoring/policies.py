"""Policies: what is measured of an update, when it is undone, and how much is served meanwhile.

A policy is plain data. There are four presets, and files that start from one of them and change
what they name (`policy_files`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from weightledger.ledger.errors import InvalidRequest

PRESETS = ("off", "specification", "safe", "strict")
DEFAULT = "specification"

LIVE_METRICS = ("accuracy", "latency_ms", "throughput", "memory_usage_mb", "failed")
"""What is decided by on live traffic."""

Reason = tuple[str, str]
"""The path of a rule, such as "trial.share", and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Goal:
    """An objective: at most a share `allowed` of the values above `limit`, or of failures."""

    allowed: float
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class TrialRules:
    """How a new state is tried.

    share: of the live requests, that meet the new state; the others meet the state before.
    requests: that each side has served before an unharmed state is promoted.
    timeout_s: seconds after which a trial that is not decided ends.
    promote: "unharmed", when no harm is shown by then; "proven", when it is shown that there is
        none.
    on_timeout: "promote", "rollback" or "wait", for a trial in which no harm was shown.
    updates: that arrive meanwhile: "stack", they join the trial; "refuse", they are refused.
    """

    share: float = 0.5
    requests: int = 1000
    timeout_s: float = 3600.0
    promote: Literal["unharmed", "proven"] = "unharmed"
    on_timeout: Literal["promote", "rollback", "wait"] = "wait"
    updates: Literal["stack", "refuse"] = "stack"


@dataclass(frozen=True, slots=True)
class RolloutRules:
    """What ends a rollout whose replicas' samples are pushed; harm always aborts it.

    values: of one metric, that each side has shown before it is finished.
    finish: "proven", when it is shown that there is no harm; "unharmed", when none is shown by
        then; "never", which leaves that to people.
    """

    values: int = 1000
    finish: Literal["proven", "unharmed", "never"] = "proven"


@dataclass(frozen=True, slots=True)
class RollbackPolicy:
    """The rules of automatic rollback; `contradictions` says what is wrong with them.

    metrics: decided by on live traffic; None is `auto_rollback_metrics`, and with a trial also
        latency_ms and failed.
    margins: relative worsening that is no harm, by metric; others have the threshold.
    objectives: limits of the new state alone, whatever the old one was like.
    alpha: the chance, at most, that a harmless update is undone; all metrics share it.
    minimum: values of the new state before anything is decided.
    trial: how a new state is tried beside the old one; None serves it to every request at once.
    rollout: when it ends a rollout to replicas; None leaves that to people.
    cool_down_s: after a rollback, for so long no other one by itself.
    most, window_s: at most so many rollbacks in so many seconds.
    evaluation: "required" refuses what no evaluator has scored.
    """

    name: str = DEFAULT
    metrics: tuple[str, ...] | None = None
    margins: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    objectives: Mapping[str, Goal] = field(default_factory=lambda: MappingProxyType({}))
    alpha: float = 0.01
    minimum: int = 50
    trial: TrialRules | None = None
    rollout: RolloutRules | None = None
    cool_down_s: float = 0.0
    most: int = 5
    window_s: float = 3600.0
    evaluation: Literal["optional", "required"] = "optional"

    @property
    def acts(self) -> bool:
        """Whether it ever refuses or undoes an update."""
        return self.name != "off"


def preset(name: str) -> RollbackPolicy:
    """A preset by name; InvalidRequest names those there are."""
    presets = {
        "off": RollbackPolicy("off", metrics=()),
        "specification": RollbackPolicy("specification"),
        "safe": RollbackPolicy("safe", trial=TrialRules()),
        "strict": RollbackPolicy(
            "strict",
            trial=TrialRules(promote="proven", on_timeout="rollback", updates="refuse"),
            evaluation="required",
        ),
    }
    if name not in presets:
        raise InvalidRequest(
            f"policy must be {', '.join(PRESETS)}, or a policy file (NAME.toml), got {name!r}",
            param="policy",
        )
    return presets[name]


def contradictions(policy: RollbackPolicy) -> list[Reason]:
    """What is wrong with a policy, each with the path of the rule; empty when nothing is."""
    wrong: list[Reason] = []

    def require(holds: bool, path: str, why: str) -> None:
        if not holds:
            wrong.append((path, why))

    require(0 < policy.alpha < 1, "alpha", f"must be between 0 and 1, got {policy.alpha}")
    require(policy.minimum >= 1, "minimum", f"must be at least 1, got {policy.minimum}")
    require(policy.cool_down_s >= 0, "cool_down_s", "must be 0 or more")
    require(policy.most >= 1, "most", f"must be at least 1, got {policy.most}")
    require(policy.window_s > 0, "window_s", "must be above 0")
    for metric in policy.metrics or ():
        known = ", ".join(LIVE_METRICS)
        require(metric in LIVE_METRICS, "metrics", f"has {metric!r}; there are {known}")
    for metric, margin in policy.margins.items():
        path = f"margins.{metric}"
        require(metric in LIVE_METRICS, path, f"is no metric; there are {', '.join(LIVE_METRICS)}")
        require(margin >= 0, path, f"must be 0 or more, got {margin}")
        watched = policy.metrics is None or metric in policy.metrics
        require(watched, path, "is the margin of a metric that is not among metrics")
    for metric, goal in policy.objectives.items():
        path = f"objectives.{metric}"
        require(metric in LIVE_METRICS, path, f"is no metric; there are {', '.join(LIVE_METRICS)}")
        require(0 < goal.allowed < 1, f"{path}.allowed", "must be between 0 and 1")
        counted = metric in ("failed", "accuracy")
        require(
            counted or goal.limit is not None, f"{path}.limit", "is missing: above what, is harm?"
        )
        require(
            not counted or goal.limit is None,
            f"{path}.limit",
            f"does not go with {metric}, which is a share already: give allowed only",
        )
    rollout = policy.rollout
    if rollout is not None:
        least = f"{rollout.values} is below minimum {policy.minimum}"
        require(rollout.values >= policy.minimum, "rollout.values", least)
    trial = policy.trial
    if trial is not None:
        _require_trial(policy, trial, require)
    return wrong


def _require_trial(
    policy: RollbackPolicy, trial: TrialRules, require: Callable[[bool, str, str], None]
) -> None:
    share = f"must be between 0 and 1, got {trial.share}: both states need traffic"
    require(0 < trial.share < 1, "trial.share", share)
    require(trial.timeout_s > 0, "trial.timeout_s", "must be above 0")
    require(
        trial.requests >= policy.minimum,
        "trial.requests",
        f"{trial.requests} is below minimum {policy.minimum}: nothing would ever be decided",
    )
    side_by_side = {"latency_ms", "failed", "throughput", "accuracy"}
    require(
        policy.metrics is None or bool(side_by_side & set(policy.metrics)),
        "metrics",
        "has nothing that differs between two states of one process: a trial would decide nothing",
    )
    require(
        not (trial.promote == "proven" and trial.on_timeout == "promote"),
        "trial.on_timeout",
        '"promote" promotes what promote = "proven" does not',
    )
