"""Choosing the rule for the next update from how the last ones went.

A selector is a frozen dataclass, its config, and a pure function: feedback and state in, a
choice and the next state out. States are plain JSON, so that an event can record them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from weightledger.rules.errors import ForeignState, RuleError
from weightledger.rules.ranges import check_ranges

SPECIFIED = ("hebbian-delta", "stdp-delta", "bcm-delta", "reinforcement-delta")
"""The four specified rules, from the best feedback to the worst."""

State = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Feedback:
    """How performance changed: accuracy as a difference of fractions, latency in milliseconds."""

    accuracy_change: float
    latency_change_ms: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, finite=["accuracy_change", "latency_change_ms"])

    @property
    def value(self) -> float:
        """f = clip(accuracy_change − 0.1·max(0, latency_change_ms), −1, 1)."""
        value = self.accuracy_change - 0.1 * max(0.0, self.latency_change_ms)
        return min(1.0, max(-1.0, value))


NO_FEEDBACK = Feedback(0.0)
"""Where nothing was measured: as if nothing had changed."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The rule to use next, why, and the selector's state after choosing. All of it is JSON."""

    rule: str
    evidence: Mapping[str, Any]
    state: State


class Selector(Protocol):
    """Chooses a rule id from feedback."""

    def init(self) -> State:
        """The state before the first choice."""

    def choose(self, feedback: Feedback, state: State) -> Choice:
        """The next rule, given how things went since the last choice."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same rule."""

    rule: str

    def init(self) -> State:
        """Nothing to remember."""
        return {}

    def choose(self, feedback: Feedback, state: State) -> Choice:
        """The rule, whatever the feedback."""
        return Choice(self.rule, {"feedback": feedback.value}, {})


@dataclass(frozen=True, slots=True)
class FeedbackThresholds:
    """f > 0.5 the first rule, f > 0 the second, f > −0.5 the third, else the fourth.

    f is the feedback of the call itself. At an `adaptation_rate` below 1 it is smoothed instead,
    f̄ ← f̄ + `adaptation_rate` (f − f̄), starting at the first feedback: at .001 the first feedback
    then chooses for hundreds of calls. A rule in use is kept until f̄ is further than `hysteresis`
    beyond the threshold that separates it from the next, so noise around a threshold does not flip
    it; the evidence says what the thresholds alone would have chosen, `by_thresholds`.
    State: `smoothed` f̄ and `rule`, both None at first.
    """

    rules: tuple[str, str, str, str] = SPECIFIED
    adaptation_rate: float = 1.0
    hysteresis: float = 0.05

    def __post_init__(self) -> None:
        check_ranges(self, fraction=["adaptation_rate"], not_negative=["hysteresis"])
        if len(set(self.rules)) != 4:
            raise RuleError(f"four different rules are needed, got {self.rules}", param="rules")

    def init(self) -> State:
        """No feedback yet."""
        return {"smoothed": None, "rule": None}

    def choose(self, feedback: Feedback, state: State) -> Choice:
        """The rule of the band that the smoothed feedback is in."""
        before, last = state["smoothed"], state["rule"]
        value = feedback.value
        smoothed = value if before is None else before + self.adaptation_rate * (value - before)
        plain = band = _band(smoothed)
        if last is not None:
            if last not in self.rules:
                raise ForeignState(f"the state's rule {last!r} is not one of {self.rules}")
            # As seen from the rule in use, upper thresholds lie higher and lower ones lower.
            kept = self.rules.index(last)
            if band < kept:
                band = min(kept, _band(smoothed, self.hysteresis))
            elif band > kept:
                band = max(kept, _band(smoothed, -self.hysteresis))
        rule = self.rules[band]
        evidence = {
            "feedback": value,
            "smoothed": smoothed,
            "previous": last,
            "by_thresholds": self.rules[plain],
        }
        return Choice(rule, evidence, {"smoothed": smoothed, "rule": rule})


@dataclass(frozen=True, slots=True)
class DiscountedUcb:
    """A bandit over rules: each is tried, then the one with the best upper confidence bound.

    The reward of the rule chosen last is (f + 1)/2. Counts N and sums S are discounted by
    `discount` at each choice, so that a rule that was good once must stay so; the bound is
    S/N + 2 √(ξ log ΣN / N), with ξ the `exploration`. Ties go to the first. Deterministic.
    State: `counts`, `sums`, `rule`.

    Garivier & Moulines, "On upper-confidence bound policies for switching bandit problems",
    ALT 2011 (D-UCB; the paper's B is 1).
    """

    rules: tuple[str, ...] = SPECIFIED
    discount: float = 0.98
    exploration: float = 0.05

    def __post_init__(self) -> None:
        check_ranges(self, fraction=["discount"], not_negative=["exploration"])
        if not self.rules or len(set(self.rules)) != len(self.rules):
            raise RuleError(f"rules must be different ids, got {self.rules}", param="rules")

    def init(self) -> State:
        """Nothing tried yet."""
        zeros = dict.fromkeys(self.rules, 0.0)
        return {"counts": zeros, "sums": dict(zeros), "rule": None}

    def choose(self, feedback: Feedback, state: State) -> Choice:
        """Credit the last rule with the feedback and choose the next."""
        if set(state["counts"]) != set(self.rules):
            raise ForeignState(
                f"the state counts {sorted(state['counts'])}, the selector has {self.rules}"
            )
        counts = {rule: self.discount * state["counts"][rule] for rule in self.rules}
        sums = {rule: self.discount * state["sums"][rule] for rule in self.rules}
        last = state["rule"]
        if last is not None:
            counts[last] += 1
            sums[last] += (feedback.value + 1) / 2
        bounds = {rule: self._bound(counts, sums, rule) for rule in self.rules}
        # JSON has no infinity: a rule never tried is told apart by having no bound.
        untried = [rule for rule, bound in bounds.items() if bound is None]
        rule = untried[0] if untried else max(self.rules, key=lambda r: bounds[r] or 0.0)
        evidence = {"feedback": feedback.value, "bounds": bounds, "previous": last}
        return Choice(rule, evidence, {"counts": counts, "sums": sums, "rule": rule})

    def _bound(
        self, counts: Mapping[str, float], sums: Mapping[str, float], rule: str
    ) -> float | None:
        count = counts[rule]
        if count == 0:
            return None
        total = max(1.0, sum(counts.values()))
        return sums[rule] / count + 2 * math.sqrt(self.exploration * math.log(total) / count)


def _band(value: float, shift: float = 0.0) -> int:
    """The number of thresholds that the value is not above, with the thresholds shifted."""
    return sum(not value > threshold + shift for threshold in (0.5, 0.0, -0.5))
