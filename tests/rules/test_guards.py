"""What each guard refuses or shortens, in which order, and what it says about it."""

import dataclasses
import json

import pytest
import torch

from weightledger import rules, sign_test
from weightledger.rules import Guards, Judgement, Proposal, RuleError, judge
from weightledger.rules.guards import (
    Bounds,
    Consolidation,
    Finding,
    NormLimit,
    ShadowScore,
    TrustRegion,
)
from weightledger.rules.library.ewc import Ewc

WEIGHT = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
NOTHING = Guards(finite=None, norm=None)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(2, 2)


def judged(guards: Guards, delta: torch.Tensor, **state: torch.Tensor) -> Judgement:
    weight, given = WEIGHT.clone(), delta.clone()
    judgement = judge(guards, weight, Proposal(delta, state))
    assert torch.equal(weight, WEIGHT)
    assert torch.equal(delta.nan_to_num(7), given.nan_to_num(7)), "the proposal was written to"
    json.dumps(judgement.evidence, allow_nan=False)
    assert (judgement.reason is None) == (judgement.refused_by is None)
    return judgement


def only(name: str, guard: rules.guards.Guard) -> Guards:
    return dataclasses.replace(NOTHING, **{name: guard})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_first(bad: float) -> None:
    judgement = judged(Guards(), tensor(0.1, bad, 0, 0))
    assert judgement.refused_by == "finite"
    assert list(judgement.evidence) == ["finite"]
    state = judged(Guards(), tensor(0.1, 0, 0, 0), theta=torch.tensor([bad]))
    assert state.reason == "not finite: theta"


def test_a_step_is_at_most_a_fraction_of_the_weight() -> None:
    """‖W‖ is 5: the limit is .5."""
    assert judged(only("norm", NormLimit(0.1)), tensor(0.3, 0.4, 0, 0)).reason is None
    refused = judged(only("norm", NormLimit(0.1)), tensor(0.31, 0.4, 0, 0))
    assert refused.refused_by == "norm"
    assert refused.evidence["norm"]["limit"] == pytest.approx(0.5)
    scaled = judged(only("norm", NormLimit(0.1, on_excess="scale")), tensor(3.0, 4.0, 0, 0))
    assert scaled.reason is None
    torch.testing.assert_close(scaled.delta, tensor(0.3, 0.4, 0, 0))
    assert scaled.evidence["norm"]["scaled_by"] == pytest.approx(0.1)


def test_a_weight_of_zeros_can_still_learn() -> None:
    proposal = Proposal(torch.full((2, 2), 1e-5), {})
    assert judge(only("norm", NormLimit(0.1)), torch.zeros(2, 2), proposal).reason is None


def test_a_norm_does_not_overflow() -> None:
    proposal = Proposal(torch.full((2, 2), 3e38), {})
    judgement = judge(Guards(), torch.ones(2, 2), proposal)
    assert judgement.refused_by == "norm"
    assert judgement.evidence["norm"]["delta_norm"] == pytest.approx(6e38)


def test_ewc_spares_what_earlier_tasks_need() -> None:
    rule = Ewc(learning_rate=1.0, strength=1.0)
    state = rule.consolidate(rules.init(rule, WEIGHT), WEIGHT, tensor(1e9, 0, 1, 0))
    judgement = judged(only("ewc", Consolidation(rule, state)), tensor(1, 1, 1, 1))
    torch.testing.assert_close(judgement.delta, tensor(0, 1, 0.5, 1), rtol=0, atol=1e-8)
    strict = Consolidation(rule, state, max_penalty=0.1)
    assert judged(only("ewc", strict), tensor(1, 1, 1, 1)).refused_by == "ewc"
    assert judged(only("ewc", strict), tensor(0, 1, 0.1, 1)).reason is None


def test_bounds_clip_or_refuse_only_what_the_step_changes() -> None:
    clipped = judged(only("bounds", Bounds(-1, 3.5)), tensor(1, -2, 0.5, 0))
    torch.testing.assert_close(WEIGHT + clipped.delta, tensor(3.5, -1, 0.5, 4))
    assert clipped.evidence["bounds"] == {"outside": 2}
    strict = only("bounds", Bounds(-1, 3.5, on_excess="refuse"))
    assert judged(strict, tensor(1, 0, 0, 0)).refused_by == "bounds"
    assert judged(strict, tensor(0.5, 0, 0, 0)).reason is None


def test_a_trust_region_measures_divergence_on_anchors() -> None:
    anchors = torch.eye(2, dtype=torch.float64)
    guard = TrustRegion(lambda weight: anchors @ weight.mT, max_kl=0.01)
    small = judged(only("trust_region", guard), tensor(0.01, 0, 0, 0))
    assert small.reason is None
    large = judged(only("trust_region", guard), tensor(-2, 0, 0, 0))
    before = torch.distributions.Categorical(logits=anchors @ WEIGHT.mT)
    after = torch.distributions.Categorical(logits=anchors @ (WEIGHT + tensor(-2, 0, 0, 0)).mT)
    expected = torch.distributions.kl_divergence(before, after).mean()
    assert large.refused_by == "trust_region"
    assert large.evidence["trust_region"]["kl"] == pytest.approx(float(expected), rel=1e-9)
    overflowing = TrustRegion(lambda weight: 1e10 * weight)
    unknown = judged(only("trust_region", overflowing), tensor(1e305, 0, 0, 0))
    assert unknown.refused_by == "trust_region"
    assert unknown.evidence["trust_region"]["kl"] is None


def score_of(before: list[float], after: list[float]) -> ShadowScore:
    """Scores that depend on whether the weight is the live one."""
    return ShadowScore(lambda w: torch.tensor(before if torch.equal(w, WEIGHT) else after))


def test_a_shadow_score_refuses_what_is_significantly_worse() -> None:
    worse = score_of([1.0] * 10, [0.0] * 6 + [1.0] * 4)
    judgement = judged(only("shadow", worse), tensor(1, 0, 0, 0))
    assert judgement.refused_by == "shadow"
    assert judgement.evidence["shadow"]["worse"] == 6
    assert judgement.evidence["shadow"]["p_worse"] == pytest.approx(1 / 64)
    by_chance = score_of([1.0] * 10, [0.0] * 2 + [1.0] * 8)
    assert judged(only("shadow", by_chance), tensor(1, 0, 0, 0)).reason is None
    lenient = dataclasses.replace(worse, max_drop=0.7)
    assert judged(only("shadow", lenient), tensor(1, 0, 0, 0)).reason is None


def test_a_strict_shadow_score_asks_for_evidence_of_good() -> None:
    for improved, accepted in ((4, False), (5, True)):
        scores = score_of([0.0] * 10, [1.0] * improved + [0.0] * (10 - improved))
        strict = dataclasses.replace(scores, require="better")
        judgement = judged(only("shadow", strict), tensor(1, 0, 0, 0))
        assert (judgement.reason is None) == accepted
    useless = ShadowScore(lambda w: torch.full((5,), float("nan")))
    assert judged(only("shadow", useless), tensor(1, 0, 0, 0)).refused_by == "shadow"


@pytest.mark.parametrize(
    ("better", "worse"),
    [(0, 0), (5, 0), (7, 3), (3, 7), (490, 510), (900, 800), (600, 900), (60_000, 59_500)],
)
def test_the_sign_test_is_scipys(better: int, worse: int) -> None:
    from scipy.stats import binomtest

    expected = (
        binomtest(better, better + worse, alternative="greater").pvalue if better + worse else 1
    )
    assert sign_test(better, worse) == pytest.approx(expected, rel=1e-9)


def test_guards_run_in_order_each_on_what_the_last_left_and_stop_at_a_refusal() -> None:
    seen: list[tuple[str, float]] = []

    @dataclasses.dataclass(frozen=True)
    class Halving:
        name: str
        reason: str | None = None

        def __call__(self, weight: torch.Tensor, proposal: Proposal) -> Finding:
            seen.append((self.name, float(proposal.delta[0, 0])))
            return Finding(proposal.delta / 2, {"saw": self.name}, self.reason)

    names = [place.name for place in dataclasses.fields(Guards)]
    assert names == ["finite", "norm", "ewc", "bounds", "trust_region", "shadow"]
    every = {name: Halving(name) for name in reversed(names)}
    accepted = judged(Guards(**every), tensor(64, 0, 0, 0))
    assert seen == [(name, 64 / 2**n) for n, name in enumerate(names)]
    assert float(accepted.delta[0, 0]) == 1
    assert list(accepted.evidence) == names

    seen.clear()
    refused = judged(Guards(**{**every, "bounds": Halving("bounds", "no")}), tensor(64, 0, 0, 0))
    assert (refused.refused_by, refused.reason) == ("bounds", "no")
    assert [name for name, _ in seen] == names[:4] == list(refused.evidence)


def test_what_guards_refuse_to_be_made_with() -> None:
    for make in (
        lambda: NormLimit(kappa=0.0),
        lambda: NormLimit(on_excess="cut"),  # type: ignore[arg-type]
        lambda: Bounds(1.0, 1.0),
        lambda: TrustRegion(lambda w: w, max_kl=-1.0),
        lambda: ShadowScore(lambda w: w, require="great"),  # type: ignore[arg-type]
    ):
        with pytest.raises(RuleError):
            make()
    proposal = Proposal(tensor(0, 0, 0, 0), {})
    with pytest.raises(RuleError, match="scores are"):
        ShadowScore(lambda w: w)(WEIGHT, proposal)
    with pytest.raises(RuleError, match="logits are"):
        TrustRegion(lambda w: w[0])(WEIGHT, proposal)
