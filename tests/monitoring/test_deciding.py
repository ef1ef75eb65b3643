"""Deciding: evidence may be looked at after every request, and a harmless state is not undone."""

import itertools
import math

import numpy as np
import pytest

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring.deciding.comparisons import (
    Alongside,
    Ceiling,
    Concurrent,
    Objective,
    Succession,
)
from weightledger.ledger.monitoring.deciding.dealing import Dealer
from weightledger.ledger.monitoring.deciding.panels import one_after_another, side_by_side
from weightledger.ledger.monitoring.deciding.wagers import Wager
from weightledger.ledger.monitoring.policies import contradictions, preset

ALPHA = 0.01


def wealth(wager: Wager) -> float:
    return float(np.exp(wager._log_wealth).sum())


@pytest.mark.parametrize("aspect", ["typical", "tail", "event"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.1])
def test_nobody_wins_on_average_by_betting_on_a_coin(aspect: str, share: float) -> None:
    """Over all ways the coin can fall the mean of the wealth is 1, exactly, whatever the values."""
    rng = np.random.default_rng(1)
    before = np.round(rng.lognormal(3, 1, 40), 1)
    values = (rng.random(7) < 0.5).astype(float) if aspect == "event" else rng.lognormal(4, 1, 7)
    mean = 0.0
    for coins in itertools.product([False, True], repeat=len(values)):
        comparison = Concurrent(aspect, share)  # type: ignore[arg-type]
        if aspect != "event":
            comparison.observe(before, np.zeros(40, bool))
        for value, coin in zip(values, coins, strict=True):
            comparison.observe(np.array([value]), np.array([coin]))
        heads = sum(coins)
        mean += share**heads * (1 - share) ** (len(values) - heads) * wealth(comparison.harm)
    assert math.isclose(mean, 1.0, rel_tol=1e-9)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("before", [0.1, 0.3, 0.5])
def test_who_is_worse_by_no_more_than_the_margin_loses_nothing_on_average(
    before: float, margin: float
) -> None:
    """A payoff below -1 was cut off there, which paid: a state that was within the margin was
    undone for certain, if it only served long enough."""
    after = before + margin
    for make in (
        lambda first: Succession("event", [first], margin),
        lambda first: Alongside("event", margin),
    ):
        mean = 0.0
        for first, second in itertools.product([0.0, 1.0], repeat=2):
            comparison = make(first)
            if isinstance(comparison, Alongside):
                comparison.observe(np.array([first]), np.array([False]))
            comparison.observe(np.array([second]), np.array([True]))
            chance = (before if first else 1 - before) * (after if second else 1 - after)
            mean += chance * wealth(comparison.harm)
        assert mean <= 1 + 1e-9


def test_wealth_is_the_same_however_values_are_handed_over() -> None:
    rng = np.random.default_rng(2)
    payoffs = rng.choice([-1.0, 1.0], 500)
    whole, parts = Wager(), Wager()
    whole.bet(payoffs)
    for part in np.split(payoffs, [1, 1, 77, 400]):
        parts.bet(part)
    assert math.isclose(whole.e_value, parts.e_value) and whole.n == parts.n == 500


def test_a_payoff_that_would_lose_more_than_all_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 or more"):
        Wager().bet(np.array([0.5, -1.5]))
    with pytest.raises(ValueError, match="-1 or more"):
        Wager().bet(np.array([np.nan]))


def test_a_better_state_is_never_harm_and_is_proven_harmless() -> None:
    rng = np.random.default_rng(3)
    comparison = Concurrent("typical", 0.5, 0.1)
    new = rng.random(3000) < 0.5
    comparison.observe(20 * rng.lognormal(0, 0.5, 3000) * np.where(new, 0.9, 1), new)
    assert comparison.statistic < 1 / ALPHA and comparison.harmless(ALPHA)


def test_what_is_worse_within_the_margin_is_no_harm() -> None:
    rng = np.random.default_rng(4)
    for factor, harm in ((1.08, False), (1.3, True)):
        after = Succession("typical", rng.lognormal(3, 0.4, 2000), 0.1)
        beside = Concurrent("typical", 0.5, 0.1)
        new = rng.random(4000) < 0.5
        values = rng.lognormal(3, 0.4, 4000) * np.where(new, factor, 1)
        after.observe(values, new)
        beside.observe(values, new)
        assert after.harmful(ALPHA) is beside.harmful(ALPHA) is harm


def test_a_slow_tail_is_harm_though_the_typical_request_is_as_fast() -> None:
    rng = np.random.default_rng(5)
    policy = preset("safe")
    panel = side_by_side(policy, ["latency_ms"], 0.1)
    new = rng.random(3000) < 0.5
    slow = new & (rng.random(3000) < 0.1)
    panel.observe("latency_ms", rng.lognormal(3, 0.3, 3000) * np.where(slow, 6, 1), new)
    assert panel.ruling().known == "harmful"


def test_values_of_before_are_used_once() -> None:
    """So a thin history can show a great harm, and none that it cannot know."""
    rng = np.random.default_rng(6)
    before = rng.lognormal(3, 0.3, 60)
    slight, great = Succession("typical", before), Succession("typical", before)
    everything = np.ones(10_000, bool)
    slight.observe(1.05 * rng.lognormal(3, 0.3, 10_000), everything)
    great.observe(4 * rng.lognormal(3, 0.3, 10_000), everything)
    assert slight.harm.n == great.harm.n == 60
    assert not slight.harmful(ALPHA) and great.harmful(ALPHA)


def test_errors_after_none_are_harm() -> None:
    """A baseline of zero is no excuse: relative change knows nothing of it, counting does."""
    events = np.zeros(1000)
    events[::50] = 1
    after = Succession("event", np.zeros(1000))
    after.observe(events, np.ones(1000, bool))
    beside = Concurrent("event", 0.5)
    new = np.arange(2000) % 2 == 0
    beside.observe(np.where(new, np.repeat(events, 2), 0.0), new)
    assert after.harmful(ALPHA / 3) and beside.harmful(ALPHA / 3)


def test_an_objective_is_a_share_over_a_limit() -> None:
    rng = np.random.default_rng(7)
    for share, harm in ((0.01, False), (0.03, True)):
        objective = Objective(0.01, limit=100.0)
        values = np.where(rng.random(5000) < share, 150.0, 50.0)
        objective.observe(values, np.ones(5000, bool))
        assert objective.harmful(ALPHA) is harm


def test_a_gauge_has_to_stay_above_its_limit() -> None:
    ceiling = Ceiling(100.0, run=3)
    ceiling.observe(np.array([120, 120, 90, 120, 120.0]), np.ones(5, bool))
    assert not ceiling.harmful(ALPHA)
    ceiling.observe(np.array([120.0]), np.ones(1, bool))
    assert ceiling.harmful(ALPHA)


def test_too_little_traffic_decides_nothing_and_says_so() -> None:
    panel = side_by_side(preset("safe"), ["latency_ms", "failed"], 0.1)
    new = np.arange(60) % 2 == 0
    panel.observe("latency_ms", np.where(new, 500.0, 1.0), new)
    ruling = panel.ruling()
    assert ruling.known == "undecided" and ruling.n_after == 30


def test_a_baseline_that_was_hardly_measured_says_nothing() -> None:
    policy = preset("specification")
    few = {"parent": {"latency_ms": np.ones(policy.minimum - 1)}}
    panel = one_after_another(policy, ["latency_ms"], 0.1, few)
    panel.observe("latency_ms", np.full(5000, 100.0), np.ones(5000, bool))
    assert panel.ruling().known == "undecided" and not panel.tests


def test_twenty_steps_of_nine_percent_do_not_pass() -> None:
    """Each is within the threshold of the state before it, and none far from the named version."""
    rng = np.random.default_rng(8)
    policy = preset("specification")
    version = rng.lognormal(3, 0.2, 2000)
    parent, caught = version, None
    for step in range(1, 21):
        references = {"parent": {"latency_ms": parent}, "version": {"latency_ms": version}}
        panel = one_after_another(policy, ["latency_ms"], 0.1, references)
        parent = rng.lognormal(3, 0.2, 2000) * 1.09**step
        panel.observe("latency_ms", parent, np.ones(2000, bool))
        ruling = panel.ruling()
        if ruling.known == "harmful":
            caught = (step, ruling.baseline)
            break
    assert caught == (2, "version")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_harm_at_once(value: float) -> None:
    panel = side_by_side(preset("safe"), ["latency_ms"], 0.1)
    panel.observe("latency_ms", np.array([1.0, value]), np.array([False, True]))
    ruling = panel.ruling()
    assert ruling.known == "harmful" and ruling.test == "not finite"
    beside = side_by_side(preset("safe"), ["latency_ms"], 0.1)
    beside.observe("latency_ms", np.array([value, 1.0]), np.array([False, True]))
    assert beside.ruling().known == "undecided"


def test_values_that_come_later_are_set_beside_those_of_their_time() -> None:
    """Load changes, and what is known of one side comes 300 requests later: dealt as they came, 58
    of 100 updates that changed nothing were undone. By their times eight are, which is more than
    the one that is meant to be: what is said of them is that they are confounded."""
    undone = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        load = np.empty(4000)
        level = 0.0
        for number in range(len(load)):
            level = 0.99 * level + 0.14 * rng.normal()
            load[number] = level
        values = 20 * np.exp(0.3 * rng.normal(size=len(load)) + 0.3 * load)
        new = rng.random(len(load)) < 0.5
        at_us = np.arange(len(load)) * 1000
        came = np.argsort(at_us + 300_000 * new, kind="stable")
        panel = side_by_side(preset("safe"), ["latency_ms"], 0.0)
        for part in np.array_split(came, 80):
            panel.observe_pushed("latency_ms", values[part], new[part], at_us[part])
        ruling = panel.ruling()
        undone += ruling.known == "harmful"
        assert ruling.confounded, "no coin decided when they came"
    assert undone <= 10


def test_what_is_dealt_is_chance_each_time() -> None:
    """The same tosses in every trial are a wrong verdict again and again, where one was."""
    values, at_us = np.zeros(200), np.arange(200)
    new = at_us % 2 == 1
    sides = [Dealer(0.5).deal(values, new, at_us)[1].tolist() for _ in range(2)]
    assert sides[0] != sides[1]


def test_a_slower_rate_is_worse_and_a_faster_one_is_not() -> None:
    policy = preset("specification")
    rng = np.random.default_rng(9)
    for factor, harm in ((0.7, True), (1.5, False)):
        before = {"parent": {"throughput": rng.lognormal(4, 0.3, 2000)}}
        panel = one_after_another(policy, ["throughput"], 0.1, before)
        panel.observe("throughput", factor * rng.lognormal(4, 0.3, 2000), np.ones(2000, bool))
        assert (panel.ruling().known == "harmful") is harm


def test_presets_contradict_nothing_and_others_are_refused_by_name() -> None:
    for name in ("off", "specification", "safe", "strict"):
        assert contradictions(preset(name)) == []
    with pytest.raises(InvalidRequest, match="off, specification, safe, strict"):
        preset("brave")
