"""What rules remember is the ledger's: rolled back, restarted, told apart, asked for again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.planned import Planned
from tests.rules.bridge import Integrate, last, manager_in, run, samples, side, weight
from weightledger import (
    Caller,
    DynamicModelManager,
    NotFound,
    rules,
)
from weightledger.ledger.errors import IdempotencyMismatch
from weightledger.rules import (
    DTESNDynamicIntegration,
    DTESNLearningConfig,
    PairedGate,
)
from weightledger.rules.dtesn import history


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
        "config": {"alpha": 1.0, "forgetting": 1.0, "ceiling": 100.0},
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


@pytest.mark.parametrize("change", ["shape", "version"])
def test_a_state_that_does_not_fit_its_rule_is_refused(
    integrate: Integrate, manager: DynamicModelManager, change: str
) -> None:
    from weightledger import Plan

    bridge = integrate()
    run(bridge.learn("2.weight", samples(), rule="rls"))
    name = "rule/2.weight/default/rls." + ("P" if change == "shape" else "version")
    other = torch.eye(9, dtype=torch.float64) if change == "shape" else torch.tensor(7)
    manager.log.execute(Planned(lambda staged: Plan({"operation": "test"}, {}, {name: other})))
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
