"""Elastic weight consolidation on a live model."""

import pytest
import torch

from tests.rules.bridge import IN, OUT, Integrate, last, run, samples, weight
from weightledger import (
    rules,
)
from weightledger.rules import (
    Guards,
    RuleError,
)


def test_consolidated_weights_hold_still_while_others_learn(integrate: Integrate) -> None:
    bridge = integrate(ewc_lambda=1e6)
    gradient = torch.zeros(4, OUT, IN)
    gradient[:, 0] = torch.tensor([1.0, -1.0, 3.0, -3.0])[:, None]
    fisher = run(bridge.update_fisher_information("2.weight", None, gradient))
    assert fisher[0].tolist() == [5.0] * IN  # squares, then the mean: signs do not cancel
    again = run(bridge.update_fisher_information("2.weight", None, gradient, 0.5))
    assert again[0].tolist() == pytest.approx([0.9 * 5 + 2.5] * IN)
    done, facts = run(bridge.consolidate_important_parameters("2.weight"))
    assert done and facts["consolidated"]
    before = weight(bridge)
    run(bridge.learn("2.weight", samples(), rule="nlms", learning_rate=0.5))
    moved = (weight(bridge) - before).abs()
    assert float(moved[0].max()) < 1e-4 < float(moved[1:].min())
    assert last(bridge)["evidence"]["guards"]["ewc"]["penalty"] >= 0
    assert torch.equal(bridge.get_consolidated_parameters()["2.weight"], before)
    assert torch.equal(bridge.get_fisher_information()["2.weight"], again)
    below, why = run(
        bridge.consolidate_important_parameters("2.weight", consolidation_threshold=100.0)
    )
    assert (below, why["reason"]) == (False, "importance_below_threshold")


def test_importance_is_the_mean_over_the_parameter(integrate: Integrate) -> None:
    bridge = integrate()
    fisher = torch.zeros(OUT, IN)
    fisher[0, 0] = 3.0  # a mean of 0.2
    assert run(bridge.consolidate_important_parameters("2.weight", None, fisher)) == (
        False,
        {
            "parameter_name": "2.weight",
            "consolidated": False,
            "mean_importance": pytest.approx(0.2),
            "max_importance": 3.0,
            "consolidation_threshold": 0.5,
            "reason": "importance_below_threshold",
        },
    )
    assert bridge.dynamic_manager.log.live.head.seq == 0
    done, facts = run(bridge.consolidate_important_parameters("2.weight", None, fisher, 0.1))
    assert done and facts["consolidated"] and facts["update_id"].startswith("update_1_")


def test_the_pull_of_consolidation_is_at_the_rate_of_the_step(integrate: Integrate) -> None:
    bridge = integrate(guards=Guards(norm=None), ewc_lambda=10.0)
    before, fisher = weight(bridge), torch.full((OUT, IN), 2.0)
    run(bridge.consolidate_important_parameters("2.weight", before + 0.5, fisher))
    asked = torch.ones(OUT, IN)
    run(bridge.enhanced_incremental_update("2.weight", asked, 0.2, rule="stdp-delta"))
    rule = rules.make_rule("stdp-delta", {"learning_rate": 0.2})
    proposed = (
        before + rules.propose(rule, before, {"delta": asked}, rules.init(rule, before)).delta
    )
    pull = 0.2 * 10.0 * fisher
    torch.testing.assert_close(
        weight(bridge), (proposed + pull * (before + 0.5)) / (1 + pull), rtol=1e-5, atol=1e-6
    )


def test_the_constraint_is_the_proximal_step(integrate: Integrate) -> None:
    bridge = integrate(learning_rate=0.1)
    current, proposed = torch.zeros(2, 2), torch.ones(2, 2)
    fisher = torch.tensor([[0.0, 1.0], [10.0, 1e9]])
    after, facts = run(
        bridge.apply_ewc_constraint("w", current, proposed, fisher, current, ewc_lambda=10.0)
    )
    assert after.flatten().tolist() == pytest.approx([1.0, 0.5, 1 / 11, 1e-9])
    assert facts["forgetting_prevention_active"] is True
    with pytest.raises(RuleError, match="not negative"):
        run(bridge.apply_ewc_constraint("w", current, proposed, -fisher, current))


@pytest.mark.parametrize("current", [torch.ones(2), torch.full((OUT, IN), torch.nan)])
def test_parameters_that_are_not_the_parameters_are_refused(
    integrate: Integrate, current: torch.Tensor
) -> None:
    bridge = integrate()
    with pytest.raises(RuleError, match="current_params"):
        run(bridge.update_fisher_information("2.weight", current, torch.ones(OUT, IN)))
    assert bridge.dynamic_manager.log.live.head.seq == 0
