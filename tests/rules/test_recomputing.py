"""Recorded steps, computed again."""

from typing import Any

import pytest
import torch

from tests.rules.bridge import IN, OUT, Integrate, last, observed, run, samples, side
from weightledger import (
    rules,
)
from weightledger.ledger.errors import Pruned
from weightledger.rules import (
    Guards,
)
from weightledger.rules.dtesn import recompute
from weightledger.rules.dtesn import state as places
from weightledger.rules.guards import Bounds, NormLimit


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
