"""The searches by themselves: every verdict of a judge leads to the step that is to blame."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightledger.ledger.debug.bisect.bisection import Bisection, End, Judged, Rules
from weightledger.ledger.debug.bisect.candidates import Candidates
from weightledger.ledger.debug.bisect.posterior import Posterior
from weightledger.ledger.debug.bisect.search import Contradiction, Verdict, bracket, probes
from weightledger.ledger.debug.bisect.searching import Search
from weightledger.ledger.errors import InvalidRequest


def searched(steps: int, culprit: int, unknown: set[int], jobs: int = 1) -> tuple[int, int, int]:
    """The suspects that are left (first and last step), and how many states were judged."""
    verdicts: dict[int, Verdict] = {}
    skipped: set[int] = set()
    judged = 0
    while True:
        between = bracket(steps, verdicts)
        chosen = probes(between, skipped, jobs)
        if not chosen:
            return between.good + 1, between.bad, judged
        assert len(set(chosen)) == len(chosen) <= jobs
        for place in chosen:
            assert between.good < place < between.bad
            assert place not in skipped
            judged += 1
            if place in unknown:
                skipped.add(place)
            else:
                verdicts[place] = "bad" if place >= culprit else "good"


@given(st.data(), st.integers(1, 300), st.integers(1, 5))
def test_the_step_is_found_in_a_logarithm_of_steps(
    data: st.DataObject, steps: int, jobs: int
) -> None:
    culprit = data.draw(st.integers(1, steps))
    first, last, judged = searched(steps, culprit, set(), jobs)
    assert first == last == culprit
    rounds = math.ceil(math.log(steps, jobs + 1)) + 1 if steps > 1 else 0
    assert judged <= jobs * rounds


@given(st.data(), st.integers(1, 60))
def test_what_cannot_be_judged_leaves_the_steps_around_it(data: st.DataObject, steps: int) -> None:
    culprit = data.draw(st.integers(1, steps))
    unknown = data.draw(st.sets(st.integers(1, steps - 1))) if steps > 1 else set()
    first, last, _ = searched(steps, culprit, unknown)
    assert first <= culprit <= last
    # Exactly the steps that no judged state tells apart.
    assert set(range(first, last)) <= unknown


def test_a_stretch_that_cannot_be_judged_costs_few_probes() -> None:
    _, _, judged = searched(10_000, 9_000, set(range(2_000, 8_000)))
    assert judged <= 30


def test_ten_thousand_steps_take_fourteen_probes_and_thirteen_where_all_is_good() -> None:
    assert max(searched(10_000, culprit, set())[2] for culprit in range(1, 10_001, 7)) == 14
    assert searched(10_000, 10_000, set())[2] == 13


def test_a_good_state_after_a_bad_one_is_a_contradiction() -> None:
    with pytest.raises(Contradiction, match="--noisy"):
        bracket(10, {3: "bad", 7: "good"})


def brute_force(steps: int, rate: float, verdicts: list[tuple[int, bool]]) -> np.ndarray:
    """The posterior by Bayes' rule, step by step."""
    weights = np.ones(steps)
    for culprit in range(1, steps + 1):
        for place, bad in verdicts:
            right = bad == (place >= culprit)
            weights[culprit - 1] *= 1 - rate if right else rate
    return weights / weights.sum()


@given(
    st.integers(1, 12),
    st.sampled_from([0.05, 0.1, 0.3]),
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=12),
)
def test_the_posterior_is_bayes_rule(
    steps: int, rate: float, verdicts: list[tuple[int, bool]]
) -> None:
    verdicts = [(place, bad) for place, bad in verdicts if place <= steps]
    posterior = Posterior(steps, rate)
    for place, bad in verdicts:
        posterior.observe(place, bad=bad)
    assert np.allclose(posterior.probabilities, brute_force(steps, rate, verdicts))


@given(
    st.integers(2, 10),
    st.sampled_from([0.1, None]),
    st.lists(st.tuples(st.integers(0, 10), st.booleans()), max_size=10),
)
def test_the_gain_is_the_entropy_that_a_verdict_is_expected_to_take(
    steps: int, rate: float | None, verdicts: list[tuple[int, bool]]
) -> None:
    def observed(more: list[tuple[int, bool]]) -> Posterior:
        posterior = Posterior(steps, rate)
        for place, bad in [*(one for one in verdicts if one[0] <= steps), *more]:
            posterior.observe(place, bad=bad)
        return posterior

    now = observed([])
    gain = now.gain()
    before, after = now._called_bad()
    for place in range(steps + 1):
        called = np.where(np.arange(1, steps + 1) <= place, after, before)
        bad = float((now.probabilities * called).sum())
        left = bad * observed([(place, True)]).entropy_bits
        left += (1 - bad) * observed([(place, False)]).entropy_bits
        assert gain[place] == pytest.approx(now.entropy_bits - left, abs=1e-9)


@pytest.mark.parametrize("rate", [0.1, None], ids=["a rate that is known", "one that is learnt"])
def test_a_judge_that_errs_is_asked_until_it_is_known(rate: float | None) -> None:
    random = np.random.default_rng(20)
    right = 0
    for _ in range(40):
        culprit = int(random.integers(1, 301))
        posterior = Posterior(300, rate)
        while posterior.best[1] < 0.95:
            (place,) = posterior.probes(1)
            posterior.observe(place, bad=(place >= culprit) != (random.random() < 0.1))
        right += posterior.best[0] == culprit
    assert right >= 36


@pytest.mark.parametrize("steps", [2, 40, 2000])
@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("last", [False, True], ids=["the first step", "the last step"])
def test_a_step_at_either_end_is_found_though_the_judges_rate_is_not_known(
    steps: int, jobs: int, last: bool
) -> None:
    """Between the ends a judge is then always of one mind, which a rate of its own explains as
    well: only judging an end tells the two apart."""
    culprit = steps if last else 1
    right = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        posterior, asked = Posterior(steps), 0
        while posterior.best[1] < 0.95:
            for place in posterior.probes(jobs):
                posterior.observe(place, bad=(place >= culprit) != (random.random() < 0.1))
                asked += 1
            assert asked < 1000
        right += posterior.best[0] == culprit
    assert right >= 18


@pytest.mark.parametrize("rate", [0.1, 0.3, None])
@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("unknown", ["all", "one in two", "around the culprit", "one end"])
def test_a_noisy_search_ends_where_states_cannot_be_judged(
    rate: float | None, jobs: int, unknown: str
) -> None:
    """With the steps that no judged state tells apart, as a search without noise does."""
    steps, right, searches = 24, 0, 12
    way = Candidates(0, [], range(1, steps + 1), 0)
    for seed in range(searches):
        random = np.random.default_rng(seed)
        culprit = int(random.integers(1, steps + 1))
        skipped = {
            "all": set(range(1, steps)),
            "one in two": set(range(0, steps + 1, 2)),
            "around the culprit": set(range(culprit - 3, culprit + 4)),
            "one end": {0, 1, 2, 3},
        }[unknown]
        bisection = Bisection("m", "", End("", 0), End("", steps), Rules(noisy=True, rate=rate))
        search, asked = Search(bisection, way), 0
        while chosen := search.probes(jobs, ends=True):
            for place in chosen:
                bad = (place >= culprit) != (random.random() < (rate or 0.1))
                verdict: Verdict = "skip" if place in skipped else "bad" if bad else "good"
                search.tell(Judged(place, verdict))
                asked += 1
            assert asked < 1000
        outcome = search.outcome()
        assert outcome.done
        assert outcome.probability is not None and outcome.probability >= 0.95
        assert (outcome.step is None) == (outcome.suspects > 1)
        likeliest = sorted(step for step, _ in search.probabilities()[: outcome.suspects])
        assert likeliest[-1] - likeliest[0] == len(likeliest) - 1
        assert set(likeliest[:-1]) <= skipped  # exactly what no judged state tells apart
        right += culprit in likeliest
    assert right >= searches - 2


@pytest.mark.parametrize("place", [0, 10])
def test_an_end_that_is_called_what_it_is_not_is_a_contradiction(place: int) -> None:
    with pytest.raises(Contradiction):
        bracket(10, {place: "good" if place else "bad"})


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_a_metric_that_is_the_good_ends_is_no_worse(lower_is_better: bool) -> None:
    rules = Rules(metric="loss", drop=0.1, lower_is_better=lower_is_better)
    for score in (1.0, math.inf, -math.inf):
        assert rules.verdict(score, score) == "good"
    assert rules.verdict(math.nan, 1.0) == rules.verdict(math.nan, math.nan) == "bad"
    low, high = (math.inf, -math.inf) if lower_is_better else (-math.inf, math.inf)
    assert (rules.verdict(low, 1.0), rules.verdict(high, 1.0)) == ("bad", "good")


def test_others_are_compared_with_what_was_called_good() -> None:
    """A judge that errs is asked about the good end, too."""
    begun = Bisection("m", "", End("", 0), End("", 9), Rules(noisy=True, metric="accuracy"))
    assert begun.baseline is None
    told = begun.told(Judged(0, "good", score=0.9), Judged(5, "bad", score=0.1))
    assert told.baseline == 0.9
    assert told.told(Judged(0, "bad", score=0.2), Judged(0, "good")).baseline == 0.9
    assert told.told(Judged(0, "good", score=0.91)).baseline == 0.91


def test_several_probes_at_once_cut_the_posterior_into_equal_parts() -> None:
    posterior = Posterior(100, 0.1)
    assert posterior.probes(3) == [25, 50, 75]
    assert posterior.probes(3, skipped=range(40, 60)) in ([25, 39, 75], [25, 60, 75])


@pytest.mark.parametrize("rate", [0.0, 0.5, -1.0, math.nan])
def test_a_rate_that_tells_nothing_is_refused(rate: float) -> None:
    with pytest.raises(InvalidRequest, match=r"above 0 and below 0\.5"):
        Posterior(10, rate)
