"""Which rule comes next: the specified thresholds, hysteresis, and a bandit."""

import json
from typing import Any

import pytest

from weightledger.rules import (
    DiscountedUcb,
    Feedback,
    FeedbackThresholds,
    Fixed,
    ForeignState,
    RuleError,
)
from weightledger.rules.selectors import Choice, Selector

HEBBIAN, STDP, BCM, REINFORCEMENT = (
    "hebbian-delta",
    "stdp-delta",
    "bcm-delta",
    "reinforcement-delta",
)


def choices(selector: Selector, *accuracy_changes: float) -> list[Choice]:
    state, made = selector.init(), []
    for change in accuracy_changes:
        before = json.dumps(state)
        choice = selector.choose(Feedback(change), state)
        assert json.dumps(state) == before, "the state passed in was written to"
        assert selector.choose(Feedback(change), state) == choice
        json.dumps([choice.evidence, choice.state], allow_nan=False)
        made.append(choice)
        state = json.loads(json.dumps(choice.state))
    return made


@pytest.mark.parametrize(
    ("accuracy", "latency", "value"),
    [
        (0.3, 0.0, 0.3),
        (0.3, -5.0, 0.3),
        (0.3, 2.0, 0.1),
        (0.0, 50.0, -1.0),
        (4.0, 1.0, 1.0),
    ],
)
def test_feedback_is_accuracy_less_a_tenth_of_added_latency(
    accuracy: float, latency: float, value: float
) -> None:
    assert Feedback(accuracy, latency).value == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (0.51, HEBBIAN),
        (0.5, STDP),
        (0.01, STDP),
        (0.0, BCM),
        (-0.49, BCM),
        (-0.5, REINFORCEMENT),
        (-1.0, REINFORCEMENT),
    ],
)
def test_the_first_feedback_chooses_by_the_specified_thresholds(value: float, rule: str) -> None:
    [choice] = choices(FeedbackThresholds(adaptation_rate=0.1), value)
    assert choice.rule == rule
    assert choice.evidence == {
        "feedback": value,
        "smoothed": value,
        "previous": None,
        "by_thresholds": rule,
    }


def test_a_rule_in_use_is_kept_until_the_threshold_is_passed_clearly() -> None:
    selector = FeedbackThresholds(hysteresis=0.1)
    walk = [0.3, 0.55, 0.61, 0.45, 0.39, -0.05, -0.11, 0.05, 0.7, -0.9, -0.45, 0.2]
    rules = [choice.rule for choice in choices(selector, *walk)]
    assert rules == [
        *(STDP, STDP, HEBBIAN, HEBBIAN, STDP, STDP),
        *(BCM, BCM, HEBBIAN, REINFORCEMENT, REINFORCEMENT, STDP),
    ]


def test_what_hysteresis_kept_is_told_from_what_the_thresholds_say() -> None:
    kept, passed = choices(FeedbackThresholds(), 0.51, 0.49, 0.3)[1:]
    assert (kept.rule, kept.evidence["by_thresholds"]) == (HEBBIAN, STDP)
    assert (passed.rule, passed.evidence["by_thresholds"]) == (STDP, STDP)


def test_without_hysteresis_each_feedback_decides() -> None:
    selector = FeedbackThresholds(hysteresis=0.0)
    walk = [0.49, 0.51, 0.49, -0.01, 0.01]
    assert [c.rule for c in choices(selector, *walk)] == [STDP, HEBBIAN, STDP, BCM, STDP]


def test_feedback_is_smoothed_at_the_adaptation_rate() -> None:
    made = choices(FeedbackThresholds(adaptation_rate=0.25), 0.8, -0.8, -0.8)
    assert [c.evidence["smoothed"] for c in made] == pytest.approx([0.8, 0.4, 0.1])


def test_fixed_is_fixed() -> None:
    assert {choice.rule for choice in choices(Fixed("rls"), 1.0, -1.0)} == {"rls"}


def play(selector: DiscountedUcb, worth: Any, rounds: int) -> list[str]:
    """Rules chosen when each is rewarded by what it is worth in that round."""
    state, rule, chosen = selector.init(), None, []
    for number in range(rounds):
        change = worth(number)[rule] if rule else 0.0
        choice = selector.choose(Feedback(change), state)
        state, rule = choice.state, choice.rule
        chosen.append(rule)
    return chosen


def test_the_bandit_tries_all_and_settles_on_the_best() -> None:
    selector = DiscountedUcb(rules=("a", "b", "c"))
    worth = {"a": -0.2, "b": 0.5, "c": 0.0}
    chosen = play(selector, lambda number: worth, 300)
    assert set(chosen[:3]) == {"a", "b", "c"}
    assert chosen[-100:].count("b") > 70


def test_the_bandit_follows_a_change() -> None:
    selector = DiscountedUcb(rules=("a", "b"))

    def worth(number: int) -> dict[str, float]:
        return {"a": 0.5, "b": -0.5} if number < 150 else {"a": -0.5, "b": 0.5}

    chosen = play(selector, worth, 400)
    assert chosen[100:150].count("a") > 35
    assert chosen[-100:].count("b") > 70


def test_what_is_refused() -> None:
    with pytest.raises(RuleError, match="finite"):
        Feedback(float("nan"))
    with pytest.raises(RuleError, match="different"):
        FeedbackThresholds(rules=("a", "a", "b", "c"))
    with pytest.raises(RuleError, match="different"):
        DiscountedUcb(rules=())
    with pytest.raises(RuleError, match="adaptation_rate"):
        FeedbackThresholds(adaptation_rate=0.0)
    with pytest.raises(ForeignState):
        FeedbackThresholds().choose(Feedback(0.1), {"smoothed": 0.1, "rule": "oja"})
    with pytest.raises(ForeignState):
        DiscountedUcb().choose(Feedback(0.1), DiscountedUcb(rules=("a", "b")).init())
