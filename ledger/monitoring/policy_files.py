"""Policies from TOML files: a preset to start from, and what is to be otherwise.

    base = "safe"
    metrics = ["latency_ms", "failed"]

    [margins]
    latency_ms = 0.05

    [objectives]
    failed = { allowed = 0.005 }

    [trial]
    share = 0.2

    [rollout]
    finish = "proven"

What contradicts itself is refused with the line and the reason.
"""

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring.policies import (
    PRESETS,
    Goal,
    Reason,
    RollbackPolicy,
    RolloutRules,
    TrialRules,
    contradictions,
    preset,
)

_SUFFIX = ".toml"
Rules = TypeVar("Rules", TrialRules, RolloutRules)
_PLAIN = ("alpha", "minimum", "cool_down_s", "most", "window_s", "evaluation")
_KNOWN = ("base", "metrics", "margins", "objectives", "trial", "rollout", *_PLAIN)
_CHOICES = {
    "evaluation": ("optional", "required"),
    "trial.promote": ("unharmed", "proven"),
    "trial.on_timeout": ("promote", "rollback", "wait"),
    "trial.updates": ("stack", "refuse"),
    "rollout.finish": ("proven", "unharmed", "never"),
}


def policy_of(name: str) -> RollbackPolicy:
    """The preset of that name, or the policy of a file that ends in `.toml`.

    InvalidRequest says what is wrong, for a file with its line.
    """
    if not name.endswith(_SUFFIX):
        return preset(name)
    path = Path(name)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"policy file {path}: {error}", param="policy") from None
    try:
        return parsed(text, path.stem)
    except InvalidRequest as error:
        raise InvalidRequest(f"policy file {path}: {error}", param="policy") from None


def parsed(text: str, stem: str) -> RollbackPolicy:
    """A policy file's text; its name is `STEM@` and the first digits of the text's SHA-256."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(str(error)) from None
    name = f"{stem}@{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    try:
        policy = _built(table, name)
        wrong = contradictions(policy)
        if wrong:
            raise _Wrong(*wrong[0])
    except _Wrong as wrong_rule:
        path, why = wrong_rule.reason
        raise InvalidRequest(f"{_place(text, path)}{path} {why}", param="policy") from None
    return policy


def rules_of(policy: RollbackPolicy) -> dict[str, Any]:
    """A policy as JSON, for the event that says that it rules from here on."""

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
        if isinstance(value, Mapping):
            return {key: plain(one) for key, one in value.items()}
        return list(value) if isinstance(value, tuple) else value

    rules: dict[str, Any] = plain(policy)
    if policy.rollout is None:
        del rules["rollout"]  # as policies were written that knew none
    return rules


class _Wrong(Exception):
    """A rule that cannot be; `reason` is its path and why."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(why)
        self.reason: Reason = (path, why)


def _built(table: Mapping[str, Any], name: str) -> RollbackPolicy:
    for key in table:
        if key not in _KNOWN:
            raise _Wrong(key, f"is no rule; there are {', '.join(_KNOWN)}")
    base = table.get("base", "specification")
    if base not in PRESETS:
        raise _Wrong("base", f"must be {', '.join(PRESETS)}, got {base!r}")
    if base == "off":
        raise _Wrong("base", '"off" decides nothing, so that no rule goes with it')
    policy = preset(base)
    trial, rollout = policy.trial, policy.rollout
    if "trial" in table:
        trial = _ruled("trial", table["trial"], trial or TrialRules())
    if "rollout" in table:
        rollout = _ruled("rollout", table["rollout"], rollout or RolloutRules())
    metrics = policy.metrics
    if "metrics" in table:
        named = table["metrics"]
        if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
            raise _Wrong("metrics", "must be a list of names")
        metrics = tuple(named)
    plain = {
        key: _typed(key, table[key], type(getattr(policy, key))) for key in _PLAIN if key in table
    }
    return replace(
        policy,
        name=name,
        metrics=metrics,
        margins=_margins(table.get("margins", {})),
        objectives=_objectives(table.get("objectives", {})),
        trial=trial,
        rollout=rollout,
        **plain,
    )


def _ruled(of: str, table: Any, rules: Rules) -> Rules:
    """The rules of a table, `of` a trial or a rollout, beside those it does not name."""
    values = {}
    known = {one.name: type(getattr(rules, one.name)) for one in fields(rules)}
    for key, value in _table(of, table).items():
        if key not in known:
            raise _Wrong(f"{of}.{key}", f"is no rule of a {of}; there are {', '.join(known)}")
        values[key] = _typed(f"{of}.{key}", value, known[key])
    return replace(rules, **values)


def _margins(table: Any) -> dict[str, float]:
    return {
        metric: _typed(f"margins.{metric}", value, float)
        for metric, value in _table("margins", table).items()
    }


def _objectives(table: Any) -> dict[str, Goal]:
    goals = {}
    for metric, goal in _table("objectives", table).items():
        path = f"objectives.{metric}"
        values = {}
        for key, value in _table(path, goal).items():
            if key not in ("allowed", "limit"):
                raise _Wrong(f"{path}.{key}", "is no part of an objective: give allowed and limit")
            values[key] = _typed(f"{path}.{key}", value, float)
        if "allowed" not in values:
            raise _Wrong(path, "lacks allowed, the share that may be above the limit")
        goals[metric] = Goal(**values)
    return goals


def _table(path: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong(path, f"must be a table, got {value!r}")
    return value


def _typed(path: str, value: Any, kind: type) -> Any:
    """A value of the type that the rule has; a whole number is one with a point, too."""
    choices = _CHOICES.get(path)
    if choices is not None:
        if value not in choices:
            raise _Wrong(path, f"must be {' or '.join(map(repr, choices))}, got {value!r}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _Wrong(
            path, f"must be {'a number' if kind is float else 'a whole number'}, got {value!r}"
        )
    if kind is float and value != value:
        raise _Wrong(path, "must be a number, got nan")
    return value


def _place(text: str, path: str) -> str:
    """`line N: ` of the rule with this path, or of what it should stand in; empty if nowhere."""
    parts = path.split(".")
    while parts:
        within: tuple[str, ...] = ()
        for number, line in enumerate(text.splitlines(), 1):
            header = re.match(r"\s*\[\s*([\w.\s\"']+?)\s*\]", line)
            if header:
                within = tuple(re.findall(r"[\w]+", header[1]))
                if within == tuple(parts):
                    return f"line {number}: "
                continue
            key = re.match(r"\s*([\w.\"'-]+(?:\s*\.\s*[\w\"'-]+)*)\s*=", line)
            if key:
                names = (*within, *re.findall(r"[\w-]+", key[1]))
                if names == tuple(parts) or (
                    names == tuple(parts[:-1]) and re.search(rf"[{{,]\s*{parts[-1]}\s*=", line)
                ):
                    return f"line {number}: "
        parts.pop()
    return ""
