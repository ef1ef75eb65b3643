"""Guards, gates and evaluators on a live model: what they refuse changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.rules.bridge import (
    IN,
    OUT,
    Integrate,
    classes,
    last,
    manager_in,
    network,
    run,
    samples,
    side,
    weight,
)
from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    TorchEngine,
    rules,
)
from weightledger.rules import (
    DTESNDynamicIntegration,
    Guards,
    PairedGate,
)
from weightledger.rules.dtesn import recompute
from weightledger.rules.guards import NormLimit


def test_a_refusal_is_an_event_that_changes_nothing(integrate: Integrate) -> None:
    bridge = integrate(guards=Guards(norm=NormLimit(kappa=1e-6)))
    before = weight(bridge)
    result = run(bridge.learn("2.weight", samples(), rule="rls"))
    assert result["success"] is False
    assert result["reason"].startswith("Automatic rollback: norm:")
    assert torch.equal(weight(bridge), before)
    assert side(bridge) == {}
    event = bridge.dynamic_manager.log.events(limit=1)[0]
    assert event.kind == "update_rejected"
    assert event.body["evidence"]["refused_by"] == "norm"
    assert event.body["rule"]["id"] == "rls"
    entry = bridge.get_learning_history()[0]
    assert (entry["success"], entry["reason"]) == (False, result["reason"])


def test_a_diverging_rule_is_refused(integrate: Integrate) -> None:
    bridge = integrate(max_iterations=2000, convergence_threshold=0.0)
    data = {name: tensor * 100 for name, tensor in samples().items()}
    result = run(bridge.learn("2.weight", data, rule="lms", learning_rate=1.0))
    assert result["success"] is False
    assert "finite: not finite: delta" in result["reason"]


class Overflowing(rules.RULES["reinforcement-delta"]):  # type: ignore[misc,name-defined]
    """Its step is fine, what it would remember is not."""

    id = "overflowing"

    def propose(self, weight: Any, activities: Any, state: Any) -> rules.Proposal:
        return rules.Proposal(
            torch.zeros_like(weight), {"baseline": weight.new_full((), torch.inf)}
        )


def test_a_state_that_is_not_finite_is_refused_too(
    integrate: Integrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rules.RULES, Overflowing.id, Overflowing)
    bridge = integrate()
    result = run(bridge.enhanced_incremental_update("2.weight", 0.1, rule="overflowing"))
    assert result["reason"] == "Automatic rollback: finite: not finite: baseline"
    assert side(bridge) == {}


def test_the_managers_evaluator_judges_a_rules_step_too(tmp_path: Path) -> None:
    start = network()[2].weight.detach().clone()

    def evaluator(module: torch.nn.Module) -> dict[str, float]:
        return {"accuracy": float(torch.equal(module[2].weight, start))}

    manager = manager_in(tmp_path, evaluator=evaluator)
    try:
        bridge = DTESNDynamicIntegration(manager)
        result = run(bridge.learn("2.weight", samples(), rule="rls"))
        assert result["reason"].startswith("Automatic rollback due to performance degradation")
        assert torch.equal(weight(bridge), start)
        assert side(bridge) == {}
    finally:
        manager.close()


def test_a_gate_adopts_what_helps_and_refuses_what_harms(integrate: Integrate) -> None:
    bridge = integrate(batch_size=1, enable_homeostasis=False)
    gate = PairedGate()
    helped = run(bridge.learn("2.weight", classes(60, 1), rule="rls", gate=gate))
    assert helped["success"] is True
    seen = last(bridge)["evidence"]["gate"]
    assert seen["items"] == 60 and seen["better"] > seen["worse"] and seen["p_better"] <= 0.05
    good = classes(60, 2)
    y = good["x"] @ weight(bridge).mT
    before = weight(bridge)
    loose = integrate(batch_size=1, enable_homeostasis=False, guards=Guards(norm=None))
    harmed = run(
        loose.learn("2.weight", {**good, "y": -y}, rule="hebb", learning_rate=0.5, gate=gate)
    )
    assert harmed["success"] is False
    assert harmed["reason"].startswith("Automatic rollback: gate: of 60 samples")
    assert torch.equal(weight(bridge), before)


def test_a_gate_scores_samples_that_are_several_time_steps_long(integrate: Integrate) -> None:
    bridge = integrate(batch_size=1, keep_activities=True)
    steps, count = 3, 20
    scored = classes(count, 3)
    drawn = torch.Generator().manual_seed(4)
    spikes = {
        "pre_spikes": (torch.rand(steps * count, IN, generator=drawn) < 0.3).float(),
        "post_spikes": (torch.rand(steps * count, OUT, generator=drawn) < 0.3).float(),
    }
    before = weight(bridge)
    result = run(
        bridge.learn(
            "2.weight", {**scored, **spikes}, rule="pair-stdp", gate=PairedGate("not worse", 1e-9)
        )
    )
    assert result["success"]
    assert last(bridge)["evidence"]["gate"]["items"] == count
    assert last(bridge)["learnt"]["proposals"] == count
    rule = rules.make_rule("pair-stdp", {"learning_rate": 0.01})
    step = rules.propose(rule, before, spikes, rules.init(rule, before)).delta
    assert torch.allclose(weight(bridge), before + step, atol=1e-6)
    assert recompute(bridge.dynamic_manager.log).exact == 1


def test_a_change_that_was_asked_for_is_scored_on_samples_it_was_not_made_from(
    integrate: Integrate,
) -> None:
    bridge = integrate(guards=Guards(norm=None))
    scored = classes(60, 1)
    wanted = torch.zeros(OUT, IN)
    wanted[range(OUT), range(OUT)] = 10.0  # what tells these classes apart
    before = weight(bridge)
    for sign in (-1.0, 1.0):
        asked = {**scored, "delta": sign * wanted}
        result = run(
            bridge.learn(
                "2.weight", asked, rule="hebbian-delta", learning_rate=0.5, gate=PairedGate()
            )
        )
        seen = last(bridge)["evidence"]["gate"]
        assert result["success"] is (sign > 0)
        assert seen["items"] == 60
        assert (seen["better"] > seen["worse"]) is (sign > 0)
        if sign < 0:
            assert torch.equal(weight(bridge), before)
    assert not torch.equal(weight(bridge), before)
    ruin = {**scored, "delta": -40 * wanted}
    lenient = PairedGate("not worse")
    refused = run(bridge.learn("2.weight", ruin, rule="hebbian-delta", gate=lenient))
    assert refused["reason"].startswith("Automatic rollback: gate: of 60 samples 0 were answered")


def test_half_types_are_rounded_once(tmp_path: Path) -> None:
    module = torch.nn.Linear(IN, OUT).to(torch.bfloat16)
    before = module.weight.detach().clone()
    manager = DynamicModelManager(
        TorchEngine(module), "half", config=DynamicUpdateConfig(backup_dir=tmp_path)
    )
    try:
        bridge = DTESNDynamicIntegration(manager)
        run(
            bridge.enhanced_incremental_update(
                "weight", torch.ones(OUT, IN), 0.05, rule="stdp-delta"
            )
        )
        after = manager.log.state()["weight"]
        step = 0.05 * (1 - (before.float() + 1) / 2)
        assert torch.equal(after, (before.float() + step).to(torch.bfloat16))
    finally:
        manager.close()


def test_a_result_that_does_not_fit_the_stored_type_is_refused(tmp_path: Path) -> None:
    module = torch.nn.Linear(IN, OUT).to(torch.float16)
    manager = DynamicModelManager(
        TorchEngine(module), "half", config=DynamicUpdateConfig(backup_dir=tmp_path)
    )
    try:
        bridge = DTESNDynamicIntegration(manager, guards=Guards(norm=None))
        result = run(bridge.enhanced_incremental_update("weight", 2e5, 1.0, rule="hebbian-delta"))
        assert result["reason"] == "Automatic rollback: result: the result does not fit float16"
        assert last(bridge)["evidence"]["refused_by"] == "result"
    finally:
        manager.close()
