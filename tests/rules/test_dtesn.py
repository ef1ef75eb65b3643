"""Learning on a live model: what a call does, what it leaves, and what undoes it."""

import asyncio
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from weightledger import (
    Caller,
    DynamicModelManager,
    DynamicUpdateConfig,
    InvalidRequest,
    NotFound,
    TorchEngine,
    rules,
)
from weightledger.ledger.errors import IdempotencyMismatch, OperationDisabled, Pruned
from weightledger.rules import (
    DTESNDynamicIntegration,
    DTESNLearningConfig,
    Fixed,
    Guards,
    PairedGate,
    RuleError,
)
from weightledger.rules.dtesn import history, recompute
from weightledger.rules.dtesn import state as places
from weightledger.rules.guards import Bounds, NormLimit

OUT, IN = 3, 5
Integrate = Callable[..., DTESNDynamicIntegration]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, IN), torch.nn.Tanh(), torch.nn.Linear(IN, OUT))


def manager_in(folder: Path, **more: Any) -> DynamicModelManager:
    config = DynamicUpdateConfig(backup_dir=folder)
    return DynamicModelManager(TorchEngine(network()), "net", config=config, **more)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[DynamicModelManager]:
    made = manager_in(tmp_path)
    yield made
    made.close()


@pytest.fixture
def integrate(manager: DynamicModelManager) -> Integrate:
    """Makes an integration: fields of the config, then `selector`, `guards`, `clock`."""

    def make(**fields: Any) -> DTESNDynamicIntegration:
        ours = {k: fields.pop(k) for k in ("selector", "guards", "clock") if k in fields}
        return DTESNDynamicIntegration(
            dynamic_manager=manager, dtesn_config=DTESNLearningConfig(**fields), **ours
        )

    return make


def run(work: Any) -> Any:
    return asyncio.run(work)


def weight(of: DTESNDynamicIntegration, position: str = "head") -> torch.Tensor:
    return of.dynamic_manager.log.state(position)["2.weight"]


def samples(count: int = 40, seed: int = 1) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(count, IN, generator=drawn)
    target = x @ torch.randn(OUT, IN, generator=drawn).mT
    return {"x": x, "target": target}


def observed(count: int = 40, seed: int = 1) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {
        "x": torch.rand(count, IN, generator=drawn),
        "y": torch.rand(count, OUT, generator=drawn),
    }


def last(of: DTESNDynamicIntegration) -> dict[str, Any]:
    return dict(of.dynamic_manager.log.events(limit=1)[0].body)


# The specification's call


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


def test_update_data_takes_the_forms_of_every_update(integrate: Integrate) -> None:
    bridge = integrate()
    flat = [0.1] * (OUT * IN)
    for data in (flat, 0.1, [[0.1] * IN] * OUT):
        assert run(bridge.enhanced_incremental_update("2.weight", data))["success"]
    assert run(bridge.enhanced_incremental_update("2.bias", [0.1] * OUT))["success"]


def test_hysteresis_keeps_a_rule_through_noise(integrate: Integrate) -> None:
    bridge = integrate(adaptation_rate=1.0)
    chosen = []
    for accuracy in (0.52, 0.49, 0.51, 0.40, 0.52, 0.9):
        context = {"accuracy_change": accuracy}
        result = run(
            bridge.enhanced_incremental_update("2.weight", 0.1, performance_context=context)
        )
        chosen.append(result["data"]["learning_algorithm"])
    assert chosen == ["hebbian", "hebbian", "hebbian", "stdp", "stdp", "hebbian"]


# Every field of the config


def test_adaptation_rate_smooths_feedback_moves_the_rate_and_sets_theta(
    integrate: Integrate,
) -> None:
    bridge = integrate(adaptation_rate=0.25)
    good, bad = {"accuracy_change": 1.0}, {"accuracy_change": -1.0}
    run(bridge.enhanced_incremental_update("2.weight", 0.1, performance_context=good))
    assert last(bridge)["learning_rate"] == pytest.approx(0.01 * 1.25)
    result = run(bridge.enhanced_incremental_update("2.weight", 0.1, performance_context=bad))
    assert last(bridge)["selector"]["evidence"]["smoothed"] == pytest.approx(0.5)
    assert result["data"]["learning_algorithm"] == "hebbian"
    assert last(bridge)["learning_rate"] == pytest.approx(0.01 * (1.25 - 0.25 * 1.25))
    run(bridge.enhanced_incremental_update("2.weight", 0.1, rule="bcm-delta"))
    assert last(bridge)["rule"]["config"]["adaptation_rate"] == 0.25
    theta = bridge.dynamic_manager.log.live.auxiliary["rule/2.weight/default/bcm-delta.theta"]
    assert theta.tolist() == pytest.approx([0.25] * OUT)
    run(bridge.learn("2.weight", observed(), rule="bcm"))
    assert last(bridge)["rule"]["config"]["tau_theta"] == pytest.approx(3.476, abs=1e-3)


def test_iterations_end_at_the_threshold_or_the_maximum(integrate: Integrate) -> None:
    data = samples()
    gains = []
    for most, threshold in ((1, 0.0), (3, 0.0), (1000, 1e-3)):
        bridge = integrate(max_iterations=most, convergence_threshold=threshold)
        run(bridge.learn("2.weight", data, rule="lms", learning_rate=0.1))
        learnt = last(bridge)["learnt"]
        gains.append((learnt["iterations"], learnt["converged"]))
        run(bridge.dynamic_manager.rollback_to_version("seq:0"))
    assert gains[:2] == [(1, False), (3, False)]
    assert gains[2][1] and 3 < gains[2][0] < 1000


def test_a_requested_change_is_taken_once_however_many_iterations(integrate: Integrate) -> None:
    bridge = integrate(max_iterations=50, convergence_threshold=0.0)
    run(bridge.enhanced_incremental_update("2.weight", torch.ones(OUT, IN), 0.1, rule="stdp-delta"))
    assert last(bridge)["learnt"]["iterations"] == 1


def test_batches_of_a_readout_are_one_event_and_the_exact_solution(integrate: Integrate) -> None:
    whole, split = [], []
    for size, found in ((40, whole), (7, split)):
        bridge = integrate(batch_size=size)
        run(bridge.learn("2.weight", samples(), rule="rls"))
        found += [weight(bridge), last(bridge)["learnt"]["proposals"]]
        run(bridge.dynamic_manager.rollback_to_version("seq:0"))
    assert (whole[1], split[1]) == (1, 6)
    assert torch.allclose(whole[0], split[0], atol=1e-6)
    data = samples()
    start = network()[2].weight.detach()
    answers = data["x"] @ start.mT + network()[2].bias.detach()
    x, missing = data["x"].double(), (data["target"] - answers).double()
    ridge = torch.linalg.solve(x.mT @ x + torch.eye(IN).double(), x.mT @ missing).mT
    assert torch.allclose(whole[0], (start + ridge).float(), atol=1e-5)


def test_without_plasticity_only_readouts_learn(integrate: Integrate) -> None:
    bridge = integrate(enable_plasticity=False)
    with pytest.raises(OperationDisabled, match="hebb has no target"):
        run(bridge.learn("2.weight", observed(), rule="hebb"))
    with pytest.raises(OperationDisabled):
        run(bridge.enhanced_incremental_update("2.weight", 0.1))
    assert bridge.dynamic_manager.log.live.head.seq == 0
    assert run(bridge.learn("2.weight", samples(), rule="nlms"))["success"]


def test_homeostasis_scales_after_the_rule_and_never_a_readout(integrate: Integrate) -> None:
    plain = integrate(enable_homeostasis=False)
    run(plain.learn("2.weight", observed(), rule="oja"))
    without = weight(plain)
    run(plain.dynamic_manager.rollback_to_version("seq:0"))
    scaled = integrate(enable_homeostasis=True, batch_size=40)
    run(scaled.learn("2.weight", observed(), rule="oja"))
    rate = torch.full((OUT,), 0.1).lerp(observed()["y"].mean(0), 0.1)
    run(plain.dynamic_manager.rollback_to_version("head~1"))
    run(
        integrate(enable_homeostasis=False, batch_size=40).learn("2.weight", observed(), rule="oja")
    )
    expected = weight(plain) * (1 + 0.01 * (0.1 - rate))[:, None]
    run(plain.dynamic_manager.rollback_to_version("seq:0"))
    run(scaled.learn("2.weight", observed(), rule="oja"))
    assert torch.allclose(weight(scaled), expected, atol=1e-6)
    assert not torch.equal(weight(scaled), without)
    run(scaled.learn("2.weight", samples(), rule="rls"))
    assert last(scaled)["passes"]["homeostasis"] is None


def test_scaling_as_the_rule_itself_scales_once(integrate: Integrate) -> None:
    bridge = integrate(enable_homeostasis=True)
    before, seen = weight(bridge), {"y": observed()["y"][:20]}
    run(bridge.learn("2.weight", seen, rule="synaptic-scaling"))
    rule = rules.make_rule("synaptic-scaling")
    step = rules.propose(rule, before, seen, rules.init(rule, before)).delta
    assert torch.equal(weight(bridge), before + step)


def test_reservoir_size_is_the_readouts_width_and_its_state_goes_on(integrate: Integrate) -> None:
    bridge = integrate(reservoir_size=IN)
    drawn = torch.randn(30, 2, generator=torch.Generator().manual_seed(3))
    target = torch.randn(30, OUT, generator=torch.Generator().manual_seed(4))
    run(bridge.learn_readout("2.weight", drawn, target))
    whole = weight(bridge)
    assert last(bridge)["activities"]["source"] == "reservoir"
    run(bridge.dynamic_manager.rollback_to_version("seq:0"))
    run(bridge.learn_readout("2.weight", drawn[:11], target[:11]))
    run(bridge.learn_readout("2.weight", drawn[11:], target[11:]))
    assert torch.allclose(weight(bridge), whole, atol=1e-6)
    with pytest.raises(RuleError, match="readout of 1000 neurons"):
        run(integrate().learn_readout("2.weight", drawn, target))


def test_learning_rate_is_the_default_of_calls_that_give_none(integrate: Integrate) -> None:
    bridge = integrate(learning_rate=0.125)
    run(bridge.enhanced_incremental_update("2.weight", 0.1))
    assert last(bridge)["learning_rate"] == 0.125
    run(bridge.enhanced_incremental_update("2.weight", 0.1, 0.25))
    assert last(bridge)["learning_rate"] == 0.25


@pytest.mark.parametrize(
    "field",
    [
        {"learning_rate": -1.0},
        {"adaptation_rate": 0.0},
        {"max_iterations": 0},
        {"batch_size": True},
        {"reservoir_size": 1.5},
        {"convergence_threshold": float("nan")},
        {"stream_ttl_s": 0.0},
    ],
)
def test_a_field_out_of_its_range_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(RuleError, match=next(iter(field))):
        DTESNLearningConfig(**field)


# State is the ledger's


def side(of: DTESNDynamicIntegration) -> dict[str, torch.Tensor]:
    return dict(of.dynamic_manager.log.live.auxiliary)


def test_rolling_back_weights_rolls_back_the_rules_state(integrate: Integrate) -> None:
    bridge = integrate()
    context = {"accuracy_change": 0.3}
    run(bridge.learn("2.weight", samples(seed=1), rule="rls"))
    run(bridge.enhanced_incremental_update("2.weight", 0.1, performance_context=context))
    first, held = weight(bridge), side(bridge)
    run(bridge.learn("2.weight", samples(seed=2), rule="rls"))
    run(
        bridge.enhanced_incremental_update(
            "2.weight", 0.1, performance_context={"accuracy_change": -1}
        )
    )
    second, further = weight(bridge), side(bridge)
    run(bridge.dynamic_manager.rollback_to_version("seq:2"))
    assert torch.equal(weight(bridge), first)
    assert side(bridge).keys() == held.keys()
    assert all(torch.equal(side(bridge)[name], held[name]) for name in held)
    run(bridge.learn("2.weight", samples(seed=2), rule="rls"))
    run(
        bridge.enhanced_incremental_update(
            "2.weight", 0.1, performance_context={"accuracy_change": -1}
        )
    )
    assert torch.equal(weight(bridge), second)
    assert all(torch.equal(side(bridge)[name], further[name]) for name in further)
    run(bridge.dynamic_manager.rollback_to_version("seq:0"))
    assert side(bridge) == {}
    assert bridge.dynamic_manager.log.verify().problem is None


def test_a_restart_goes_on_where_learning_was(tmp_path: Path) -> None:
    weights = []
    for folder, restart in ((tmp_path / "a", False), (tmp_path / "b", True)):
        manager = manager_in(folder)
        bridge = DTESNDynamicIntegration(manager)
        run(bridge.learn("2.weight", samples(seed=1), rule="rls"))
        run(bridge.enhanced_incremental_update("2.weight", 0.1))
        if restart:
            manager.close()
            manager = manager_in(folder)
            bridge = DTESNDynamicIntegration(manager)
            history = bridge.get_learning_history()
            assert [entry["learning_type"] for entry in history] == ["rls", "bcm"]
            status = bridge.get_integration_status()
            assert (status["total_learning_updates"], status["dtesn_available"]) == (2, True)
            assert status["recent_algorithms"] == ["rls", "bcm"]
        run(bridge.learn("2.weight", samples(seed=2), rule="rls"))
        weights.append(weight(bridge))
        manager.close()
    assert torch.equal(*weights)


def test_history_and_status_are_read_page_by_page_and_only_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_PAGE", 2)
    config = DTESNLearningConfig(enable_homeostasis=False)
    manager = manager_in(tmp_path)
    try:
        bridge = DTESNDynamicIntegration(manager, config)
        for step in range(5):
            run(bridge.learn("2.weight", samples(seed=step), rule="nlms", learning_rate=0.01))
            run(manager.create_version(f"after {step}"))
        assert not run(bridge.enhanced_incremental_update("2.weight", 1e6))["success"]
        whole = bridge.get_learning_history()
        assert [one["learning_type"] for one in whole] == ["nlms"] * 5 + ["bcm"]
        assert bridge.get_learning_history(limit=3) == whole[-3:]
        assert bridge.get_learning_history(limit=0) == []
        with monkeypatch.context() as wider:
            wider.setattr(history, "_PAGE", 4)
            assert bridge.get_learning_history(limit=1) == whole[-1:]
        status = bridge.get_integration_status()
        counts = ("total_learning_updates", "refused_learning_updates")
        assert [status[name] for name in counts] == [5, 1]
        assert status["recent_algorithms"] == ["nlms"] * 5 + ["bcm"]
        head = manager.log.events(limit=1)[0].seq
        read: list[Any] = []
        events = manager.log.events
        monkeypatch.setattr(
            manager.log, "events", lambda **where: read.append(where) or events(**where)
        )
        run(bridge.learn("2.weight", samples(), rule="nlms", learning_rate=0.01))
        assert bridge.get_integration_status()["total_learning_updates"] == 6
        assert [w["min_seq"] for w in read if "kinds" in w] == [head + 1]
        fresh = DTESNDynamicIntegration(manager, config).get_integration_status()
        assert fresh == bridge.get_integration_status()
    finally:
        manager.close()


def test_streams_never_see_each_others_state(integrate: Integrate) -> None:
    bridge = integrate(enable_homeostasis=False)
    spikes = {
        "pre_spikes": torch.tensor([[1.0, 0, 0, 0, 0]]),
        "post_spikes": torch.tensor([[0.0, 0, 0]]),
    }
    fired = {
        "pre_spikes": torch.tensor([[0.0, 0, 0, 0, 0]]),
        "post_spikes": torch.tensor([[1.0, 0, 0]]),
    }
    run(bridge.learn("2.weight", spikes, rule="pair-stdp", stream="a"))
    before = weight(bridge)
    run(bridge.learn("2.weight", fired, rule="pair-stdp", stream="b"))
    assert torch.equal(weight(bridge), before)  # nothing fired before, in this stream
    run(bridge.learn("2.weight", fired, rule="pair-stdp", stream="a"))
    moved = weight(bridge) - before
    assert float(moved[0, 0]) > 0 and int((moved != 0).sum()) == 1


def test_the_event_says_what_a_step_was_made_from(integrate: Integrate) -> None:
    bridge = integrate()
    run(bridge.learn("2.weight", samples(), rule="rls"))
    first = last(bridge)
    run(bridge.learn("2.weight", samples(seed=2), rule="rls", metadata={"run": 7}))
    second = last(bridge)
    assert second["rule"] == {
        "id": "rls",
        "version": 1,
        "config": {"alpha": 1.0, "forgetting": 1.0},
    }
    assert first["state"]["in"] == {}
    assert second["state"]["in"] == first["state"]["out"]
    assert second["activities"]["tensors"].keys() == {"x", "y", "target"}
    assert second["activities"]["source"] == "caller"
    assert second["evidence"]["guards"]["finite"] == {"not_finite": []}
    recorded = {
        change.name.rpartition("/")[2]: change.after.hex()
        for change in bridge.dynamic_manager.log.events(limit=1)[0].changes
        if change.name.startswith("rule/") and change.after
    }
    assert recorded.items() <= second["state"]["out"].items()
    assert "rls.P" in recorded


def test_forgetting_drops_a_streams_state_and_no_weight(integrate: Integrate) -> None:
    bridge = integrate()
    run(bridge.learn("2.weight", samples(), rule="rls"))
    before = weight(bridge)
    run(bridge.forget("2.weight"))
    assert side(bridge) == {}
    assert torch.equal(weight(bridge), before)
    with pytest.raises(NotFound, match="remember nothing"):
        run(bridge.forget("2.weight"))


# Guards and gates


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


def classes(count: int, seed: int) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.randint(OUT, (count,), generator=drawn)
    noise = 0.3 * torch.randn(count, IN, generator=drawn)
    target = torch.nn.functional.one_hot(labels, OUT).float()
    return {"x": torch.nn.functional.pad(target, (0, IN - OUT)) + noise, "target": target}


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


def test_a_gate_scores_each_sample_once_however_many_iterations(integrate: Integrate) -> None:
    bridge = integrate(max_iterations=3, convergence_threshold=0.0)
    run(bridge.learn("2.weight", classes(20, 1), rule="nlms", gate=PairedGate()))
    assert last(bridge)["learnt"]["iterations"] == 3
    assert last(bridge)["evidence"]["gate"]["items"] == 20


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


# Elastic weight consolidation


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


# Computing steps again


def test_steps_with_kept_activities_are_computed_again(integrate: Integrate) -> None:
    bridge = integrate(keep_activities=True, batch_size=7)
    run(bridge.learn("2.weight", samples(), rule="rls"))
    run(bridge.learn("2.weight", observed(), rule="bcm"))
    run(bridge.enhanced_incremental_update("2.weight", 0.1))
    run(integrate().learn("2.weight", samples(seed=3), rule="rls"))
    found = recompute(bridge.dynamic_manager.log)
    assert (found.exact, found.close, found.without_activities) == (3, 0, 1)
    assert found.ok
    assert not [name for name in side(bridge) if "activity." in name]


def test_a_step_that_a_guard_shortened_is_computed_again(integrate: Integrate) -> None:
    shortening = Guards(norm=NormLimit(kappa=0.01, on_excess="scale"))
    bridge = integrate(keep_activities=True, guards=shortening)
    run(bridge.learn("2.weight", samples(), rule="rls"))
    assert last(bridge)["evidence"]["guards"]["norm"]["scaled_by"] < 0.5
    clipping = Guards(norm=None, bounds=Bounds(-0.1, 0.1))
    run(integrate(keep_activities=True, guards=clipping).learn("2.weight", samples(), rule="nlms"))
    found = recompute(bridge.dynamic_manager.log)
    assert (found.exact, found.state_only, found.problems) == (1, 1, {})


def test_another_version_of_a_rule_and_other_activities_are_not_compared(
    integrate: Integrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = integrate(keep_activities=True)
    run(bridge.learn("2.weight", samples(), rule="nlms"))
    kept = places.kept_activities

    def touched(held: Any) -> Any:
        return {name: tensor * 2 for name, tensor in kept(held).items()}

    with monkeypatch.context() as other:
        other.setattr(places, "kept_activities", touched)
        (problem,) = recompute(bridge.dynamic_manager.log).problems.values()
        assert "not the one whose digest the event has" in problem
    monkeypatch.setattr(rules.RULES["nlms"], "version", 2)
    (problem,) = recompute(bridge.dynamic_manager.log).problems.values()
    assert problem == "nlms is at version 2, the event was made by version 1"


def test_a_rule_that_computes_otherwise_is_found(
    integrate: Integrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = integrate(keep_activities=True)
    run(bridge.learn("2.weight", samples(), rule="nlms"))
    propose = rules.RULES["nlms"].propose

    def other(self: Any, *given: Any) -> rules.Proposal:
        made = propose(self, *given)
        return rules.Proposal(made.delta * 1.01, made.state)

    monkeypatch.setattr(rules.RULES["nlms"], "propose", other)
    found = recompute(bridge.dynamic_manager.log)
    assert not found.ok
    assert "the step is another" in next(iter(found.problems.values()))


def test_only_the_last_steps_activities_are_kept(integrate: Integrate) -> None:
    bridge = integrate(keep_activities=True, enable_homeostasis=False)
    run(bridge.learn("2.weight", observed(), rule="oja"))
    run(bridge.learn("2.weight", {"y": observed()["y"]}, rule="synaptic-scaling"))
    kept = [name for name in side(bridge) if "/activity." in name]
    assert kept == ["rule/2.weight/default/activity.y"]


def test_what_cannot_be_compared_is_counted_as_such(integrate: Integrate) -> None:
    bridge = integrate(keep_activities=True)
    run(bridge.update_fisher_information("2.weight", None, torch.ones(OUT, IN)))
    run(bridge.consolidate_important_parameters("2.weight"))
    run(bridge.learn("2.weight", samples(), rule="nlms"))
    found = recompute(bridge.dynamic_manager.log)
    assert (found.exact, found.close, found.state_only) == (0, 0, 1)
    assert found.ok


def test_another_scaling_is_found(integrate: Integrate, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = integrate(keep_activities=True, enable_homeostasis=True, batch_size=40)
    run(bridge.learn("2.weight", observed(), rule="oja", learning_rate=0.01))
    assert recompute(bridge.dynamic_manager.log).ok
    scale = rules.RULES["synaptic-scaling"].propose

    def other(self: Any, *given: Any) -> rules.Proposal:
        made = scale(self, *given)
        return rules.Proposal(made.delta, {name: t + 1 for name, t in made.state.items()})

    monkeypatch.setattr(rules.RULES["synaptic-scaling"], "propose", other)
    found = recompute(bridge.dynamic_manager.log)
    assert "state 'rate' is another" in next(iter(found.problems.values()))


def test_a_step_whose_state_was_pruned_is_counted_as_such(
    integrate: Integrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = integrate(keep_activities=True)
    run(bridge.learn("2.weight", samples(), rule="nlms"))
    log = bridge.dynamic_manager.log

    def gone(position: str) -> Any:
        raise Pruned(f"{position} was pruned", seq=1)

    monkeypatch.setattr(log, "state", gone)
    found = recompute(log)
    assert (found.pruned, found.ok) == (1, True)


@pytest.mark.parametrize("current", [torch.ones(2), torch.full((OUT, IN), torch.nan)])
def test_parameters_that_are_not_the_parameters_are_refused(
    integrate: Integrate, current: torch.Tensor
) -> None:
    bridge = integrate()
    with pytest.raises(RuleError, match="current_params"):
        run(bridge.update_fisher_information("2.weight", current, torch.ones(OUT, IN)))
    assert bridge.dynamic_manager.log.live.head.seq == 0


# Bad input changes nothing


SHORT = {"x": torch.ones(3, IN), "y": torch.ones(2, OUT)}
NARROW = {"x": torch.ones(2, 4), "y": torch.ones(2, OUT)}
EMPTY = {"x": torch.ones(0, IN), "y": torch.ones(0, OUT)}
SHORT_TARGET = {**observed(), "target": torch.ones(39, OUT)}
THIN_X = {**observed(), "x": torch.ones(40, IN - 1), "target": torch.ones(40, OUT)}
LABELS = {**observed(), "target": torch.zeros(40)}
SPIKES = {"pre_spikes": torch.ones(6, IN), "post_spikes": torch.ones(6, OUT)}
UNEVEN = {**SPIKES, "x": torch.ones(4, IN), "target": torch.ones(4, OUT)}
BROKEN_X = {**observed(), "x": torch.full((40, IN), torch.inf), "target": torch.ones(40, OUT)}
GATED = {"gate": PairedGate()}
BROKEN = {**samples(), "target": torch.full((40, OUT), torch.nan)}


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([1.0, 2.0], {}, RuleError, r"\(3, 5\)"),
        ("x", {}, RuleError, "update_data"),
        ([[1.0], [2.0, 3.0]], {}, RuleError, "update_data"),
        (float("nan"), {}, RuleError, "not finite"),
        (True, {}, RuleError, "booleans"),
        (0.1, {"parameter_name": "nope"}, NotFound, "'nope' not found"),
        (0.1, {"learning_rate": -1.0}, RuleError, "learning_rate"),
        (0.1, {"rule": "backprop"}, rules.UnknownRule, "no rule"),
        (0.1, {"rule": "oja"}, RuleError, "not from update_data"),
        (0.1, {"performance_context": {"accuracy_change": "up"}}, RuleError, "accuracy_change"),
        (0.1, {"performance_context": {"latency_change": math.inf}}, RuleError, "finite"),
        (0.1, {"stream": "a/b"}, RuleError, "stream's name"),
    ],
)
def test_a_bad_update_changes_nothing(
    integrate: Integrate, data: Any, options: dict[str, Any], error: Any, message: str
) -> None:
    bridge = integrate()
    call = {"parameter_name": "2.weight", "update_data": data, **options}
    with pytest.raises(error, match=message):
        run(bridge.enhanced_incremental_update(**call))
    assert bridge.dynamic_manager.log.live.head.seq == 0
    assert issubclass(error, InvalidRequest | NotFound)


@pytest.mark.parametrize(
    ("activities", "options", "message"),
    [
        ({"x": torch.ones(2, IN)}, {"rule": "hebb"}, "missing: y"),
        ({**observed(), "z": 1.0}, {"rule": "hebb"}, "not z"),
        (NARROW, {"rule": "hebb"}, "in=5"),
        (SHORT, {"rule": "hebb"}, r"batch=3.*\(2, 3\)"),
        (EMPTY, {"rule": "hebb"}, "is empty"),
        (observed(), {"rule": "hebb", "parameter_name": "2.bias"}, r"\[out, in\]"),
        (BROKEN, {"rule": "lms"}, "not finite"),
        (samples(), {"rule": "rls", "learning_rate": 0.1}, "no learning rate"),
        (samples(), {"rule": "rls", "rule_config": {"beta": 1}}, "no field 'beta'"),
        (observed(), {"rule": "hebb", "gate": PairedGate()}, "x, y and target"),
        (samples(), {"rule": "rls", "batch_size": 0}, "batch_size"),
        (samples(), {}, "needs the activities"),
        # A readout's y and a gate's scores are worked out from x before the rule is asked.
        (THIN_X, {"rule": "rls"}, "'x' of rls.*in=5"),
        ({**observed(), "target": torch.ones(40, 2)}, {"rule": "nlms"}, "out=3"),
        ({**observed(), "target": torch.ones(40)}, {"rule": "rls"}, "'target' of rls"),
        (SHORT_TARGET, {"rule": "rls"}, r"got \(39, 3\)"),
        (THIN_X, {"rule": "synaptic-scaling", **GATED}, r"samples of x \[batch, 5\]"),
        (LABELS, {"rule": "hebb", **GATED}, r"samples of target \[batch, 3\]"),
        (SHORT_TARGET, {"rule": "hebb", **GATED}, r"as many as of x, got \(39, 3\)"),
        (BROKEN_X, {"rule": "synaptic-scaling", **GATED}, "'x' has values that are not finite"),
        (UNEVEN, {"rule": "pair-stdp", **GATED}, "pre_spikes 6.*x 4"),
        (
            {"delta": torch.ones(OUT, IN), "x": torch.ones(2, IN)},
            {"rule": "stdp-delta", **GATED},
            "missing: target",
        ),
        (
            {"y": torch.ones(2, OUT)},
            {"rule": "intrinsic-plasticity", "parameter_name": "2.bias", **GATED},
            "missing: x, target",
        ),
        ({**observed(2), "x": torch.ones(2, IN).to_sparse()}, {"rule": "hebb"}, "dense tensor"),
        ({**observed(2), "x": torch.ones(2, IN).to("meta")}, {"rule": "hebb"}, "on meta"),
        ({**observed(2), "x": torch.ones(2, IN) * 1j}, {"rule": "hebb"}, "real numbers"),
        ({**observed(2), "x": torch.ones(2, IN) > 0}, {"rule": "hebb"}, "booleans"),
    ],
)
def test_bad_activities_change_nothing(
    integrate: Integrate, activities: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    bridge = integrate()
    call = {"parameter_name": "2.weight", "activities": activities, **options}
    with pytest.raises(RuleError, match=message):
        run(bridge.learn(**call))
    assert bridge.dynamic_manager.log.live.head.seq == 0


def test_parameters_that_are_not_floats_are_refused(tmp_path: Path) -> None:
    module = torch.nn.BatchNorm1d(4)
    manager = DynamicModelManager(
        TorchEngine(module), "norm", config=DynamicUpdateConfig(backup_dir=tmp_path)
    )
    try:
        with pytest.raises(RuleError, match="int64: rules learn floats"):
            run(
                DTESNDynamicIntegration(manager).enhanced_incremental_update(
                    "num_batches_tracked", 1
                )
            )
    finally:
        manager.close()


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


@pytest.mark.parametrize("change", ["shape", "version"])
def test_a_state_that_does_not_fit_its_rule_is_refused(
    integrate: Integrate, manager: DynamicModelManager, change: str
) -> None:
    from weightledger import Plan

    bridge = integrate()
    run(bridge.learn("2.weight", samples(), rule="rls"))
    name = "rule/2.weight/default/rls." + ("P" if change == "shape" else "version")
    other = torch.eye(9, dtype=torch.float64) if change == "shape" else torch.tensor(7)
    manager.log.write(lambda staged: Plan({"operation": "test"}, {}, {name: other}))
    with pytest.raises(rules.ForeignState):
        run(bridge.learn("2.weight", samples(), rule="rls"))
    assert manager.log.live.head.seq == 2
    run(bridge.forget("2.weight"))
    assert run(bridge.learn("2.weight", samples(), rule="rls"))["success"]


def test_a_retry_is_answered_and_another_request_is_not(integrate: Integrate) -> None:
    bridge = integrate()
    caller = Caller(idempotency_key="k")
    first = run(bridge.learn("2.weight", samples(), rule="rls", caller=caller))
    again = run(bridge.learn("2.weight", samples(), rule="rls", caller=caller))
    assert again["update_id"] == first["update_id"]
    with pytest.raises(IdempotencyMismatch):
        run(bridge.learn("2.weight", samples(seed=9), rule="rls", caller=caller))


@pytest.mark.parametrize(
    "other",
    [
        {"stream": "another"},
        {"gate": PairedGate("not worse", 1e-9)},
        {"rule_config": {"epsilon": 1e-3}},
        {"learning_rate": 0.25},
        {"batch_size": 2},
        {"performance_context": {"accuracy_change": 0.1}},
        {"rule": "lms"},
        {"parameter_name": "0.weight"},
    ],
)
def test_a_key_is_for_one_request_in_every_detail(
    integrate: Integrate, other: dict[str, Any]
) -> None:
    bridge = integrate()
    key = Caller(idempotency_key="k")
    call = {"parameter_name": "2.weight", "activities": samples(), "rule": "nlms", "caller": key}
    assert run(bridge.learn(**call))["success"]
    with pytest.raises(IdempotencyMismatch):
        run(bridge.learn(**{**call, **other}))


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
