"""What every field of the bridge's config does."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.rules.bridge import (
    IN,
    OUT,
    Integrate,
    last,
    manager_in,
    network,
    observed,
    run,
    samples,
    side,
    weight,
)
from weightledger import Caller, LedgerError, rules
from weightledger.ledger.errors import OperationDisabled
from weightledger.rules import (
    DTESNDynamicIntegration,
    DTESNLearningConfig,
    Guards,
    PairedGate,
    RuleError,
)
from weightledger.rules.guards import NormLimit


def test_the_defaults_are_the_specifications() -> None:
    specified = {
        "learning_rate": 0.01,
        "adaptation_rate": 0.001,
        "max_iterations": 100,
        "convergence_threshold": 1e-4,
        "enable_plasticity": True,
        "enable_homeostasis": True,
        "batch_size": 32,
        "reservoir_size": 1000,
    }
    fields = dataclasses.asdict(DTESNLearningConfig())
    assert dict(list(fields.items())[:8]) == specified


def test_adaptation_rate_moves_the_learned_rate_and_theta(integrate: Integrate) -> None:
    bridge = integrate(adaptation_rate=0.25)
    good, bad = {"accuracy_change": 1.0}, {"accuracy_change": -1.0}
    run(bridge.enhanced_incremental_update("2.weight", 0.1, performance_context=good))
    assert last(bridge)["learning_rate"] == pytest.approx(0.01 * 1.25)
    run(bridge.enhanced_incremental_update("2.weight", 0.1, performance_context=bad))
    assert last(bridge)["learning_rate"] == pytest.approx(0.01 * (1.25 - 0.25 * 1.25))
    run(bridge.enhanced_incremental_update("2.weight", 0.1, rule="bcm-delta"))
    assert last(bridge)["rule"]["config"]["adaptation_rate"] == 0.25
    theta = bridge.dynamic_manager.log.live.auxiliary["rule/2.weight/default/bcm-delta.theta"]
    assert theta.tolist() == pytest.approx([0.25] * OUT)


@pytest.mark.parametrize(("rate", "tau"), [(0.25, 3.476), (0.001, 50.0), (1.0, 50.0)])
def test_bcms_theta_is_never_slower_than_its_own(
    integrate: Integrate, rate: float, tau: float
) -> None:
    bridge = integrate(adaptation_rate=rate)
    run(bridge.learn("2.weight", observed(), rule="bcm"))
    assert last(bridge)["rule"]["config"]["tau_theta"] == pytest.approx(tau, abs=1e-3)


def test_a_learned_rate_of_zero_is_zero_and_comes_back(integrate: Integrate) -> None:
    bridge = integrate(adaptation_rate=1.0)
    rates = []
    for change in (-1.0, -0.5, 1.0):
        context = {"accuracy_change": change}
        run(bridge.enhanced_incremental_update("2.weight", 0.1, performance_context=context))
        rates.append(last(bridge)["learning_rate"])
    assert rates == pytest.approx([0.0, 0.005, 0.02])


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


@pytest.mark.parametrize("rule_id", ["rls", "oja", "bcm", "pair-stdp", "stdp-delta", "gated nlms"])
def test_what_would_count_samples_twice_takes_one_pass(integrate: Integrate, rule_id: str) -> None:
    """A rule with memory, one without a target, a gate, and a change that was asked for."""
    bridge = integrate(max_iterations=50, convergence_threshold=0.0)
    rule = rule_id.removeprefix("gated ")
    seen = {**observed(), **samples(), "delta": torch.ones(OUT, IN)}
    seen |= {"pre_spikes": torch.ones(40, IN), "post_spikes": torch.ones(40, OUT)}
    gate = PairedGate() if rule != rule_id else None
    wanted = {name: seen[name] for name in rules.get_rule(rule).activities}
    run(bridge.learn("2.weight", wanted, rule=rule, gate=gate))
    assert last(bridge)["learnt"]["iterations"] == 1
    assert last(bridge)["passes"]["max_iterations"] == 1


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


# Every field acts where its docstring says

BASE = {"reservoir_size": IN}
OTHER = {
    "learning_rate": 0.02,
    "adaptation_rate": 0.5,
    "max_iterations": 1,
    "convergence_threshold": 10.0,
    "enable_plasticity": False,
    "enable_homeostasis": False,
    "batch_size": 7,
    "reservoir_size": IN - 1,
    "reservoir_seed": 1,
    "keep_activities": True,
    "ewc_lambda": 1.0,
    "fisher_decay": 0.5,
    "stream_ttl_s": 100.0,
    "max_stream_samples": 5,
    "reward_ttl_s": 100.0,
    "max_waiting_rewards": 1,
}


class Session:
    """A bridge whose clock can be set, and what its calls came to."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.now = 0.0
        self.bridge = DTESNDynamicIntegration(
            manager_in(folder), DTESNLearningConfig(**config), clock=lambda: self.now
        )
        self.outcomes: list[object] = []

    def note(self, call: Callable[[], object]) -> None:
        try:
            self.outcomes.append(call() is None)
        except LedgerError as error:
            self.outcomes.append(type(error))

    def ended(self) -> list[object]:
        """What the calls came to: outcomes, the weight, and all that rules remember."""
        tensors = {"weight": weight(self.bridge), **side(self.bridge)}
        self.bridge.dynamic_manager.close()
        return [*self.outcomes, {name: tensor.tolist() for name, tensor in tensors.items()}]


def update(session: Session) -> None:
    bridge = session.bridge
    run(bridge.consolidate_important_parameters("2.weight", None, torch.ones(OUT, IN)))
    asked = torch.arange(1.0, OUT * IN + 1).view(OUT, IN) / 100
    for accuracy in (0.9, 0.3, -0.2, -0.9, 0.0):
        context = {"accuracy_change": accuracy}
        session.note(
            lambda context=context: run(  # type: ignore[misc]
                bridge.enhanced_incremental_update("2.weight", asked, performance_context=context)
            )
        )


def learn(session: Session) -> None:
    bridge = session.bridge
    run(bridge.consolidate_important_parameters("2.weight", None, torch.ones(OUT, IN)))
    context = {"accuracy_change": 0.5}
    for rule, seen in (("nlms", samples()), ("oja", observed()), ("bcm", observed())):
        session.note(
            lambda rule=rule, seen=seen: run(  # type: ignore[misc]
                bridge.learn("2.weight", seen, rule=rule, performance_context=context)
            )
        )


def learn_readout(session: Session) -> None:
    drawn = torch.randn(30, 2, generator=torch.Generator().manual_seed(3))
    target = torch.randn(30, OUT, generator=torch.Generator().manual_seed(4))
    session.note(lambda: run(session.bridge.learn_readout("2.weight", drawn, target)))


def update_fisher_information(session: Session) -> None:
    for _ in range(2):
        gradient = torch.ones(OUT, IN)
        run(session.bridge.update_fisher_information("2.weight", None, gradient))


def open_stream(session: Session) -> None:
    stream = session.bridge.open_stream("s", "2.weight")

    def infer() -> None:
        with stream.lease() as live:
            live.module(torch.ones(6, 4))

    session.note(infer)
    session.now = 200.0
    session.outcomes.append(session.bridge.get_integration_status()["open_streams"])


def remember(session: Session) -> None:
    action = {"x": torch.ones(1, IN), "mean": torch.ones(1, OUT), "action": torch.ones(1, OUT)}
    for request in ("one", "two"):
        session.note(
            lambda request=request: session.bridge.remember(  # type: ignore[misc]
                request, "2.weight", action
            )
        )
    session.now = 200.0
    session.outcomes.append(session.bridge.get_integration_status()["waiting_rewards"])


PROBES: dict[str, Callable[[Session], None]] = {
    probe.__name__: probe
    for probe in (update, learn, learn_readout, update_fisher_information, open_stream, remember)
}


def calls_by_field() -> dict[str, list[str]]:
    """The calls that the docstring names, by field."""
    text = " ".join(str(DTESNLearningConfig.__doc__).split())
    named: dict[str, list[str]] = {}
    for fields, calls in re.findall(r"- ((?:`\w+`,? ?)+) \(([\w, ]+)\):", text):
        named |= dict.fromkeys(re.findall(r"\w+", fields), calls.split(", "))
    return named


def test_the_docstring_says_of_every_field_where_it_acts() -> None:
    names = [field.name for field in dataclasses.fields(DTESNLearningConfig)]
    assert list(calls_by_field()) == names == list(OTHER)
    assert {call for calls in calls_by_field().values() for call in calls} == PROBES.keys()


@pytest.fixture(scope="module")
def as_configured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """What each probe comes to with the fields at their defaults."""
    ended = {}
    for name, probe in PROBES.items():
        session = Session(tmp_path_factory.mktemp(name), BASE)
        probe(session)
        ended[name] = session.ended()
    return ended


@pytest.mark.parametrize("field", OTHER)
def test_every_field_acts_where_it_says_and_on_no_update_where_it_does_not(
    field: str, as_configured: dict[str, list[object]], tmp_path: Path
) -> None:
    calls = calls_by_field()[field]
    for name in {"update", *calls}:
        session = Session(tmp_path / name, {**BASE, field: OTHER[field]})
        PROBES[name](session)
        differs = session.ended() != as_configured[name]
        assert differs == (name in calls), f"{field} {'acts' if differs else 'does not'} on {name}"


SCALARS = [np.float32, np.float64, np.float16, np.int64, np.array, torch.tensor]


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda kind: kind.__name__)
def test_a_scalar_of_numpy_or_torch_is_a_number_wherever_one_is_asked_for(
    integrate: Integrate, scalar: Callable[[Any], Any]
) -> None:
    config = DTESNLearningConfig(
        learning_rate=scalar(1), max_iterations=scalar(3) if scalar in SCALARS[3:] else 3
    )
    assert (type(config.learning_rate), type(config.max_iterations)) in ((float, int), (int, int))
    bridge = integrate(guards=Guards(norm=NormLimit(kappa=scalar(100))))
    for rate, own in ((scalar(1), {}), (None, {"learning_rate": scalar(1)})):
        run(
            bridge.learn(
                "2.weight",
                samples(),
                rule="nlms",
                learning_rate=rate,
                rule_config={"epsilon": scalar(1), **own},
                performance_context={"accuracy_change": scalar(0)},
                selector=rules.FeedbackThresholds(adaptation_rate=scalar(1)),
                caller=Caller(idempotency_key=str(rate)),
            )
        )
        said = last(bridge)
        assert (said["learning_rate"], said["rule"]["config"]["epsilon"]) == (1, 1)
    json.dumps(bridge.get_integration_status())


@pytest.mark.parametrize("flag", [True, np.True_, torch.tensor(True), "1", None, [1.0]])
def test_what_is_no_number_is_none(integrate: Integrate, flag: Any) -> None:
    for make in (
        lambda: DTESNLearningConfig(learning_rate=flag),
        lambda: DTESNLearningConfig(batch_size=flag),
        lambda: NormLimit(kappa=flag),
        lambda: PairedGate(alpha=flag),
        lambda: rules.FeedbackThresholds(hysteresis=flag),
        lambda: rules.Feedback(flag),
        lambda: rules.make_rule("oja", {"learning_rate": flag}),
        lambda: rules.RULES["oja"](learning_rate=flag),  # type: ignore[call-arg]
        lambda: run(integrate().reward("r", flag)),
        lambda: run(
            integrate().learn(
                "2.weight",
                samples(),
                rule="nlms",
                learning_rate=[flag] if flag is None else flag,  # type: ignore[arg-type]
            )
        ),
    ):
        with pytest.raises((RuleError, rules.UnknownRequest)):
            make()
