"""The rules beside other people's code, on data that `tests/fixtures/rules/make_golden.py` wrote.

Agreement is asked to 1e-12, in double precision; differences seen are of the order 1e-16.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from weightledger import rules
from weightledger.rules.reservoirs import TreeReservoir

GOLDEN = Path(__file__).parent.parent / "fixtures" / "rules" / "golden.json"


def tensors(value: Any) -> Any:
    """Lists as double precision tensors, all the way down."""
    if isinstance(value, dict):
        return {name: tensors(item) for name, item in value.items()}
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, list | float) else value


@pytest.fixture(scope="module")
def golden() -> Any:
    return tensors(json.loads(GOLDEN.read_text()))


def assert_same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def run(rule_id: str, config: dict[str, float], trains: dict[str, torch.Tensor]) -> rules.Proposal:
    """One proposal for the whole window, from silent synapses of weight 0."""
    rule = rules.make_rule(rule_id, {"w_min": -100.0, "w_max": 100.0, **config})
    weight = torch.zeros(3, 4, dtype=torch.float64)
    activities = {name: trains[name] for name in rule.activities}
    return rules.propose(rule, weight, activities, rules.init(rule, weight))


def test_oja_and_bcm_are_nengos(golden: Any) -> None:
    case = golden["nengo"]
    for rule_id in ("oja", "bcm"):
        rule = rules.make_rule(rule_id, {"learning_rate": 0.3})
        state = rules.init(rule, case["weight"])
        if rule_id == "bcm":
            state["theta"] = case["theta"]
        xy = {"x": case["x"][None], "y": case["y"][None]}
        assert_same(rules.propose(rule, case["weight"], xy, state).delta, case[rule_id])


@pytest.mark.parametrize(("peer", "forgetting"), [("nengo", 1.0), ("reservoirpy", 0.97)])
def test_rls_is_nengos_and_reservoirpys(golden: Any, peer: str, forgetting: float) -> None:
    case = golden[peer]["rls"]
    rule = rules.make_rule("rls", {"alpha": 0.7, "forgetting": forgetting})
    weight = torch.zeros_like(case["weight"])
    batch = {"x": case["x"], "y": torch.zeros_like(case["target"]), "target": case["target"]}
    proposal = rules.propose(rule, weight, batch, rules.init(rule, weight))
    assert_same(proposal.delta, case["weight"])
    assert_same(proposal.state["P"], case["P"])


@pytest.mark.parametrize(
    ("rule_id", "config"),
    [
        ("rls", {"alpha": 0.7, "forgetting": 0.97}),
        ("nlms", {"learning_rate": 0.4, "epsilon": 0.01}),
    ],
)
def test_rls_and_nlms_are_padasips(golden: Any, rule_id: str, config: dict[str, float]) -> None:
    case = golden["padasip"]
    rule = rules.make_rule(rule_id, config)
    weight = torch.zeros(1, 4, dtype=torch.float64)
    if rule_id == "rls":
        # padasip starts at P = I/eps too.
        assert rules.init(rule, weight)["P"][0, 0] == 1 / 0.7
    state = rules.init(rule, weight)
    for x, target in zip(case["x"][:, None], case["target"][:, None, None], strict=True):
        proposal = rules.propose(
            rule, weight, {"x": x, "y": x @ weight.mT, "target": target}, state
        )
        weight, state = weight + proposal.delta, dict(proposal.state)
    assert_same(weight[0], case[rule_id])


def test_pair_stdp_is_snntorchs(golden: Any) -> None:
    config = {"a_plus": 0.3, "a_minus": 0.2, "tau_plus_ms": 7.0, "tau_minus_ms": 11.0}
    proposal = run("pair-stdp", config, golden["spikes"])
    case = golden["snntorch"]
    assert_same(proposal.delta, case["delta"])
    assert_same(proposal.state["pre_trace"], case["pre_trace"])
    assert_same(proposal.state["post_trace"], case["post_trace"])


def test_pair_stdp_is_spikingjellys(golden: Any) -> None:
    """Its traces decay by 1 − 1/τ a step: the same exponential with another τ."""
    config = {
        "a_plus": 0.3,
        "a_minus": 0.2,
        "tau_plus_ms": -1 / math.log(1 - 1 / 7),
        "tau_minus_ms": -1 / math.log(1 - 1 / 11),
    }
    assert_same(run("pair-stdp", config, golden["spikes"]).delta, golden["spikingjelly"]["stdp"])


def test_mstdpet_is_spikingjellys(golden: Any) -> None:
    config = {
        "learning_rate": 0.5,
        "a_plus": 0.3,
        "a_minus": 0.2,
        "tau_plus_ms": 7.0,
        "tau_minus_ms": 11.0,
        "tau_eligibility_ms": 9.0,
    }
    proposal = run("mstdpet", config, golden["spikes"])
    assert_same(proposal.delta, golden["spikingjelly"]["mstdpet"])
    assert_same(proposal.state["eligibility"], golden["spikingjelly"]["eligibility"])


@pytest.mark.parametrize("timing", ["next step", "same step"])
@pytest.mark.parametrize("window", [40, 7, 1])
def test_mstdpet_is_bindsnets_in_both_timings_of_the_reward(timing: str, window: int) -> None:
    case = tensors(json.loads((GOLDEN.parent / "reward_timing.json").read_text()))
    config = {
        "learning_rate": 0.5,
        "a_plus": 0.3,
        "a_minus": 0.2,
        "tau_plus_ms": 7.0,
        "tau_minus_ms": 11.0,
        "tau_eligibility_ms": 9.0,
        "w_min": -100.0,
        "w_max": 100.0,
        "reward_timing": timing,
    }
    rule = rules.make_rule("mstdpet", config)
    weight = torch.zeros(3, 4, dtype=torch.float64)
    state = rules.init(rule, weight)
    for start in range(0, 40, window):
        rows = {name: train[start : start + window] for name, train in case["spikes"].items()}
        proposal = rules.propose(rule, weight, rows, state)
        weight, state = weight + proposal.delta, dict(proposal.state)
    assert_same(weight, case["bindsnet"][timing.replace(" ", "_")])
    other = case["bindsnet"]["same_step" if timing == "next step" else "next_step"]
    assert float((weight - other).abs().max()) > 0.01


def test_pair_stdp_and_r_stdp_are_brians(golden: Any) -> None:
    config = {"a_plus": 0.3, "a_minus": 0.2, "tau_plus_ms": 20.0, "tau_minus_ms": 25.0}
    case = golden["brian2"]
    assert_same(run("pair-stdp", config, golden["spikes"]).delta, case["stdp"])
    proposal = run("r-stdp", config, golden["spikes"])
    assert_same(proposal.delta, case["r_stdp"])
    assert_same(proposal.state["eligibility"], case["eligibility"])
    assert_same(proposal.state["dopamine"], case["dopamine"])


def test_the_reservoir_and_intrinsic_plasticity_are_reservoirpys(golden: Any) -> None:
    case = golden["reservoirpy"]
    weights = {f"0.{name}": case[name] for name in ("W", "W_in", "b")}
    architecture = TreeReservoir(reservoir_size=7, inputs=2, leak=0.3)
    assert_same(architecture.run(weights, case["u"]), case["states"])

    rule = rules.make_rule(
        "intrinsic-plasticity", {"learning_rate": 1.0, "mean": 0.1, "sigma": 0.4}
    )
    bias = torch.zeros(7, dtype=torch.float64)
    y = {"y": case["ip"]["y"][None]}
    proposal = rules.propose(rule, bias, y, rules.init(rule, bias))
    assert_same(proposal.delta, case["ip"]["d_bias"])
