"""Which rule a call of the specification gets, and what it does with it."""

import pytest
import torch

from tests.rules.bridge import IN, OUT, Integrate, last, observed, run, samples, weight
from weightledger import DynamicModelManager, IncrementalUpdateRequest, rules
from weightledger.rules import (
    Fixed,
)


@pytest.mark.parametrize(
    ("accuracy_change", "latency_change", "expected"),
    [
        (0.9, 0.0, "hebbian"),
        (0.3, 0.0, "stdp"),
        (-0.2, 0.0, "bcm"),
        (-0.9, 0.0, "reinforcement"),
        (0.9, 5.0, "stdp"),
        (0.9, -5.0, "hebbian"),
        (0.0, 0.0, "bcm"),
    ],
)
def test_feedback_selects_the_rule(
    integrate: Integrate, accuracy_change: float, latency_change: float, expected: str
) -> None:
    bridge = integrate()
    before = weight(bridge)
    update = torch.ones(OUT, IN) * torch.arange(1.0, OUT + 1)[:, None]
    context = {"accuracy_change": accuracy_change, "latency_change": latency_change}
    result = run(
        bridge.enhanced_incremental_update("2.weight", update, performance_context=context)
    )
    assert result["success"] is True
    assert result["update_count"] == 1
    assert result["data"]["learning_algorithm"] == expected
    moved = weight(bridge) - before
    assert 0 < float(moved.norm()) <= 2 * 1.05 * 0.01 * float(update.norm())
    assert last(bridge)["selector"]["choice"] == f"{expected}-delta"


def test_the_learning_rate_is_applied_once_and_the_live_weight_is_what_is_read(
    integrate: Integrate,
) -> None:
    bridge = integrate()
    start = weight(bridge)
    update = torch.randn(OUT, IN) * 0.05
    for _ in range(2):
        before = weight(bridge)
        run(bridge.enhanced_incremental_update("2.weight", update, 0.5, rule="stdp-delta"))
        rule = rules.make_rule("stdp-delta", {"learning_rate": 0.5})
        step = rules.propose(rule, before, {"delta": update}, rules.init(rule, before)).delta
        assert torch.equal(weight(bridge), before + step)
    assert not torch.equal(
        weight(bridge, "head~1") - start, weight(bridge) - weight(bridge, "head~1")
    )


@pytest.mark.parametrize("rule", ["hebbian-delta", "stdp-delta", "nlms", "oja"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_learning_rate_of_zero_leaves_every_bit(
    manager: DynamicModelManager, integrate: Integrate, rule: str, signed: bool
) -> None:
    bridge = integrate(enable_homeostasis=False)
    zeros = torch.zeros(OUT, IN)
    zeros[0] = -0.0
    run(
        manager.apply_incremental_update(
            IncrementalUpdateRequest("2.weight", zeros, update_type="replace")
        )
    )
    before = weight(bridge).view(torch.int32)
    assert bool(before.any())
    seen = {**observed(), **samples(), "delta": torch.ones(OUT, IN) * (-1 if signed else 1)}
    wanted = {name: seen[name] for name in rules.get_rule(rule).activities}
    assert run(bridge.learn("2.weight", wanted, rule=rule, learning_rate=0.0))["success"]
    assert torch.equal(weight(bridge).view(torch.int32), before)


def test_update_data_takes_the_forms_of_every_update(integrate: Integrate) -> None:
    bridge = integrate()
    flat = [0.1] * (OUT * IN)
    for data in (flat, 0.1, [[0.1] * IN] * OUT):
        assert run(bridge.enhanced_incremental_update("2.weight", data))["success"]
    assert run(bridge.enhanced_incremental_update("2.bias", [0.1] * OUT))["success"]


def test_each_call_gets_the_rule_of_its_own_feedback_with_the_specifications_config(
    integrate: Integrate,
) -> None:
    bridge = integrate(adaptation_rate=0.001, max_iterations=100)
    chosen = []
    for accuracy in (0.8, *[-0.9] * 5, 0.3, -0.2):
        context = {"accuracy_change": accuracy}
        result = run(
            bridge.enhanced_incremental_update("2.weight", 0.1, performance_context=context)
        )
        chosen.append(result["data"]["learning_algorithm"])
    assert chosen == ["hebbian", *["reinforcement"] * 5, "stdp", "bcm"]
    said = last(bridge)["selector"]
    assert said["config"]["hysteresis"] == 0.05
    assert said["evidence"] == {
        "feedback": -0.2,
        "smoothed": -0.2,
        "previous": "stdp-delta",
        "by_thresholds": "bcm-delta",
    }


def test_hysteresis_keeps_a_rule_through_noise(integrate: Integrate) -> None:
    bridge = integrate()
    chosen = []
    for accuracy in (0.52, 0.49, 0.51, 0.40, 0.52, 0.9):
        context = {"accuracy_change": accuracy}
        result = run(
            bridge.enhanced_incremental_update("2.weight", 0.1, performance_context=context)
        )
        chosen.append(result["data"]["learning_algorithm"])
    assert chosen == ["hebbian", "hebbian", "hebbian", "stdp", "stdp", "hebbian"]


def test_selectors_of_different_kinds_do_not_share_what_they_remember(
    integrate: Integrate,
) -> None:
    bridge = integrate()
    for selector in (rules.FeedbackThresholds(), rules.DiscountedUcb(), rules.FeedbackThresholds()):
        context = {"accuracy_change": 0.3}
        run(bridge.enhanced_incremental_update("2.weight", 0.1, None, context, selector=selector))
        seen = last(bridge)["selector"]
        assert seen["config"]["kind"] == type(selector).__name__
    assert seen["evidence"]["previous"] == "stdp-delta"


def test_a_selector_chooses_among_rules_that_learn_from_activities(integrate: Integrate) -> None:
    names = ("rls", "nlms", "oja", "hebb")
    bridge = integrate(selector=rules.FeedbackThresholds(rules=names))
    data = {**samples(), "y": samples()["x"] @ weight(bridge).mT}
    for accuracy, expected in ((0.9, "rls"), (-0.9, "hebb")):
        context = {"accuracy_change": accuracy}
        result = run(bridge.learn("2.weight", data, performance_context=context))
        assert result["data"]["learning_algorithm"] == expected
    fixed = integrate(selector=Fixed("oja"))
    assert run(fixed.learn("2.weight", observed()))["data"]["learning_algorithm"] == "oja"
