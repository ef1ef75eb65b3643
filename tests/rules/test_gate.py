"""The paired gate: what it scores, how often chance deceives it, and what it refuses to score."""

import json
import math

import pytest
import torch
from torch.nn.functional import one_hot

from tests.rules.bridge import IN, Integrate, last, run, weight
from weightledger import rules
from weightledger.rules import Guards, PairedGate, RuleError
from weightledger.rules.dtesn.gate import Tally, tally_for
from weightledger.rules.dtesn.learner import Passes, teach

ITEMS, WINDOWS = 50, 2_000
# P(at least 32 of 50 fair tosses): the largest level that 50 samples have below .05.
ATTAINED = 0.0325


def within(count: int, windows: int, chance: float) -> bool:
    """Whether a count is within four standard deviations of what its chance makes of it."""
    return abs(count / windows - chance) < 4 * math.sqrt(chance * (1 - chance) / windows)


def adopted(tally: Tally, require: str = "better") -> bool:
    return tally.refusal(PairedGate(require)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("outputs", [1, 3])
def test_of_two_regressions_that_are_as_good_one_in_thirty_is_taken_for_better(
    outputs: int, scale: float
) -> None:
    """Both are off by as much, to either side of a target whose noise has no side; heavy tails."""
    generator = torch.Generator().manual_seed(11)
    counts = {"better": 0, "not worse": 0}
    for _ in range(WINDOWS):
        noise = torch.randn(ITEMS, outputs, generator=generator)
        target = noise * torch.rand(ITEMS, 1, generator=generator).clamp(min=1e-3) ** -1
        off = scale * torch.rand(ITEMS, outputs, generator=generator)
        tally = Tally("loss")
        tally.add(-off, off, target)
        for require in counts:
            counts[require] += adopted(tally, require)
    # The mean has to be smaller as well, which now and then it is not.
    assert ATTAINED / 2 < counts["better"] / WINDOWS < 0.05
    assert within(WINDOWS - counts["not worse"], WINDOWS, ATTAINED)


def test_of_two_classifiers_that_are_as_good_few_are_taken_for_better() -> None:
    generator = torch.Generator().manual_seed(12)
    counts = 0
    for _ in range(WINDOWS):
        target = one_hot(torch.randint(4, (ITEMS,), generator=generator), 4).float()
        answers = torch.rand(2, ITEMS, 4, generator=generator) + 0.5 * target
        tally = tally_for(PairedGate(), target)
        assert tally.score == "answers"
        tally.add(*answers, target)
        counts += adopted(tally)
    assert 0.01 < counts / WINDOWS < 0.05


@pytest.mark.parametrize(("rule_id", "rate"), [("nlms", 0.5), ("rls", None)])
def test_what_learns_from_noise_is_hardly_ever_adopted(rule_id: str, rate: float | None) -> None:
    """Score-then-learn on targets that have nothing to do with x: the live zeros are best."""
    rule = rules.make_rule(rule_id, {} if rate is None else {"learning_rate": rate})
    live = torch.zeros(1, 4)
    passes = Passes(1, 1, 0.0, None, PairedGate())
    generator = torch.Generator().manual_seed(13)
    count, windows = 0, 100
    for _ in range(windows):
        x = torch.randn(ITEMS, 4, generator=generator)
        target = torch.randn(ITEMS, 1, generator=generator)
        seen = {"x": x, "y": x @ live.mT, "target": target}
        tally = teach(rule, live, seen, rules.init(rule, live), {}, passes).tally
        assert tally is not None
        assert (tally.score, tally.items) == ("loss", ITEMS)
        count += adopted(tally)
    assert count / windows <= 0.05


def regression(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, IN, generator=generator)
    return {"x": x, "target": x @ torch.ones(3, IN).mT}


def test_a_regression_that_helps_is_adopted_and_one_that_harms_is_refused(
    integrate: Integrate,
) -> None:
    bridge = integrate(batch_size=1, guards=Guards(norm=None), enable_homeostasis=False)
    assert run(bridge.learn("2.weight", regression(1), rule="rls", gate=PairedGate()))["success"]
    seen = last(bridge)["evidence"]["gate"]
    assert seen["score"] == "loss" and seen["loss_after"] < seen["loss_before"]
    assert seen["better"] > 50 and seen["p_better"] < 1e-6
    before, good = weight(bridge), regression(2)
    harm = {**good, "y": -good["x"] @ before.mT}
    refused = run(bridge.learn("2.weight", harm, rule="hebb", learning_rate=0.1, gate=PairedGate()))
    assert refused["success"] is False
    assert refused["reason"].startswith("Automatic rollback: gate: of 60 samples")
    assert "mean loss" in refused["reason"]
    assert torch.equal(weight(bridge), before)


def test_many_small_gains_do_not_buy_a_great_loss() -> None:
    target = torch.zeros(20, 1)
    live, learnt = torch.full((20, 1), 1.0), torch.full((20, 1), 0.9)
    learnt[0] = 50.0
    tally = Tally("loss")
    tally.add(live, learnt, target)
    assert (tally.better, tally.worse) == (19, 1)
    assert tally.evidence()["p_better"] < 1e-4
    assert not adopted(tally)


@pytest.mark.parametrize("score", ["answers", "loss"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_answer_that_is_not_finite_is_the_worst(score: str, bad: float) -> None:
    target = one_hot(torch.arange(20) % 2, 2).float()
    broken = target * bad  # the largest is where it should be, and unknown
    tally = Tally(score)  # type: ignore[arg-type]
    tally.add(target, broken, target)
    assert (tally.better, tally.worse) == (0, 20)
    assert not adopted(tally) and not adopted(tally, "not worse")
    json.dumps(tally.evidence(), allow_nan=False)
    both = Tally(score)  # type: ignore[arg-type]
    both.add(broken, broken, target)
    assert (both.better, both.worse) == (0, 0)
    json.dumps(both.evidence(), allow_nan=False)


CLASSES = one_hot(torch.tensor([0, 2, 1]), 3).float()


@pytest.mark.parametrize(
    ("target", "score"),
    [
        (CLASSES, "answers"),
        (torch.ones(3, 1), "loss"),  # one output, which is always the largest
        (torch.tensor([[0.0], [1.0]]), "loss"),
        (CLASSES * 0.9, "loss"),
        (2 * CLASSES - 1, "loss"),
        (torch.zeros(2, 3), "loss"),
        (torch.ones(2, 3), "loss"),
    ],
)
def test_what_is_scored_goes_by_the_targets(target: torch.Tensor, score: str) -> None:
    assert tally_for(PairedGate(), target).score == score
    assert tally_for(PairedGate(score="loss"), target).score == "loss"


@pytest.mark.parametrize("target", [torch.ones(3, 1), torch.zeros(3, 4), torch.ones(2, 2)])
def test_answers_that_cannot_be_right_or_wrong_are_refused(
    integrate: Integrate, target: torch.Tensor
) -> None:
    with pytest.raises(RuleError, match="score by loss"):
        tally_for(PairedGate(score="answers"), target)
    bridge = integrate()
    flat = {"x": torch.ones(2, IN), "target": torch.ones(2, 3)}
    with pytest.raises(RuleError, match="no single largest"):
        run(bridge.learn("2.weight", flat, rule="rls", gate=PairedGate(score="answers")))
    assert bridge.dynamic_manager.log.live.head.seq == 0
    assert tally_for(PairedGate(score="answers"), 2 * CLASSES - 1).score == "answers"
