"""Where activities come from: hooks during a stream, rewards that come late, other packages."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.rules.packages import install
from tests.waiting import PATIENCE_S
from weightledger import (
    Caller,
    DynamicModelManager,
    DynamicUpdateConfig,
    InplaceEngine,
    TorchEngine,
    rules,
)
from weightledger.rules import DTESNDynamicIntegration, DTESNLearningConfig, Guards, RuleError


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


@pytest.fixture(params=[TorchEngine, InplaceEngine])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DynamicModelManager]:
    config = DynamicUpdateConfig(backup_dir=tmp_path)
    made = DynamicModelManager(request.param(network()), "net", config=config)
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bridge(manager: DynamicModelManager, clock: Clock) -> DTESNDynamicIntegration:
    config = DTESNLearningConfig(
        enable_homeostasis=False,
        stream_ttl_s=10,
        max_stream_samples=64,
        reward_ttl_s=10,
        max_waiting_rewards=2,
    )
    return DTESNDynamicIntegration(manager, config, clock=clock)


def run(work: Any) -> Any:
    return asyncio.run(work)


def weight(of: DTESNDynamicIntegration) -> torch.Tensor:
    return of.dynamic_manager.log.state()["2.weight"]


def inputs(count: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


# Streams


def test_a_stream_learns_from_what_its_layer_did(bridge: DTESNDynamicIntegration) -> None:
    stream = bridge.open_stream("s", "2.weight")
    images = inputs()
    with stream.lease() as live:
        live.module(images[:3])
        live.module(images[3:])
    before = weight(bridge)
    assert run(bridge.close_stream("s", rule="oja"))["success"]
    model = network()
    x = torch.tanh(model[0](images)).detach()
    y = model[2](x).detach()
    rule = rules.make_rule("oja")
    step = rules.propose(rule, before, {"x": x, "y": y}, rules.init(rule, before)).delta
    assert torch.allclose(weight(bridge), before + step, atol=1e-7)
    said = bridge.dynamic_manager.log.events(limit=1)[0].body
    assert said["stream"] == "s"
    assert said["activities"]["source"] == "hooks"
    assert said["activities"]["samples"] == 8


def test_streams_and_readers_overhear_nothing(bridge: DTESNDynamicIntegration) -> None:
    one, other = bridge.open_stream("one", "2.weight"), bridge.open_stream("other", "2.weight")
    inside, done = threading.Event(), threading.Event()

    def reader() -> None:
        with bridge.dynamic_manager.lease() as live:
            inside.wait(PATIENCE_S)
            live.module(inputs(5))
        done.set()

    thread = threading.Thread(target=reader)
    thread.start()
    with one.lease() as first, other.lease() as second:
        inside.set()
        assert done.wait(PATIENCE_S)
        first.module(inputs(2))
        second.module(inputs(3))
    thread.join()
    with bridge.dynamic_manager.lease() as live:
        live.module(inputs(7))
        assert not live.module[2]._forward_hooks
    assert len(one.activities()["x"]) == 2
    assert len(other.activities()["x"]) == 3


def test_a_stream_goes_on_over_updates_of_the_model(bridge: DTESNDynamicIntegration) -> None:
    stream = bridge.open_stream("s", "2.weight")
    seen = []
    for _ in range(2):
        with stream.lease() as live:
            seen.append(live.module(inputs()).detach())
        run(bridge.enhanced_incremental_update("2.weight", 1.0))
    assert not torch.equal(*seen)
    assert torch.equal(stream.activities()["y"], torch.cat(seen))
    run(bridge.close_stream("s", rule="hebb"))
    said = bridge.dynamic_manager.log.events(limit=1)[0].body["activities"]
    assert (said["first_seq"], said["last_seq"]) == (0, 1)


def test_a_stream_whose_learning_fails_stays_open_with_all_it_has_seen(
    bridge: DTESNDynamicIntegration,
) -> None:
    stream = bridge.open_stream("s", "2.weight")
    with stream.lease() as live:
        live.module(inputs())
    with pytest.raises(RuleError, match="learning_rate"):
        run(bridge.close_stream("s", rule="oja", learning_rate=-1.0))
    assert bridge.get_integration_status()["open_streams"] == ["s"]
    assert len(stream.activities()["x"]) == len(inputs())
    assert run(bridge.close_stream("s", rule="oja", gate=None))["success"]
    assert bridge.get_integration_status()["open_streams"] == []


def test_no_gate_means_no_activities_for_one(bridge: DTESNDynamicIntegration) -> None:
    stream = bridge.open_stream("s", "2.bias")
    with stream.lease() as live:
        live.module(inputs())
    done = run(bridge.close_stream("s", rule="intrinsic-plasticity", learning_rate=1e-5, gate=None))
    assert done["success"]  # of x and y it takes y alone


def test_a_stream_that_is_never_closed_expires(
    bridge: DTESNDynamicIntegration, clock: Clock
) -> None:
    stream = bridge.open_stream("s", "2.weight")
    with stream.lease() as live:
        live.module(inputs())
    clock.now = 10.0
    with pytest.raises(rules.UnknownStream, match="has expired"), stream.lease():
        pass
    assert bridge.get_integration_status()["open_streams"] == []
    with pytest.raises(rules.UnknownStream, match="not closed in time and has expired"):
        run(bridge.close_stream("s", rule="oja"))
    with pytest.raises(rules.UnknownStream, match="is not open"):
        run(bridge.close_stream("other", rule="oja"))
    assert bridge.dynamic_manager.log.live.head.seq == 0
    bridge.open_stream("s", "2.weight")


def test_a_streams_misuse_is_refused(bridge: DTESNDynamicIntegration) -> None:
    stream = bridge.open_stream("s", "2.weight")
    with pytest.raises(RuleError, match="open already"):
        bridge.open_stream("s", "2.weight")
    with pytest.raises(RuleError, match="64 samples at most"), stream.lease() as live:
        live.module(inputs(65))
    with pytest.raises(RuleError, match="seen no activity"):
        run(bridge.close_stream("s", rule="oja"))
    with pytest.raises(rules.UnknownRule):
        run(bridge.close_stream("s", rule="backprop"))
    for name in ("", "a b", "@ewc", 5, "x" * 65):
        with pytest.raises(RuleError, match="stream's name"):
            bridge.open_stream(name, "2.weight")
    with pytest.raises(rules.errors.NotFound, match="nope"):
        bridge.open_stream("t", "nope.weight")


# Rewards


def action() -> dict[str, torch.Tensor]:
    return {
        "x": torch.ones(1, 5),
        "mean": torch.tensor([[0.2, 0.3, 0.5]]),
        "action": torch.tensor([[1.0, 0.0, 0.0]]),
    }


def test_a_late_reward_learns_from_its_own_action(bridge: DTESNDynamicIntegration) -> None:
    before = weight(bridge)
    bridge.remember("r1", "2.weight", action())
    assert bridge.dynamic_manager.log.live.head.seq == 0
    run(bridge.reward("r1", 2.0))
    score = action()["action"] - action()["mean"]
    expected = before + 0.01 * 2.0 * score.mT @ action()["x"]
    assert torch.allclose(weight(bridge), expected, atol=1e-7)
    said = bridge.dynamic_manager.log.events(limit=1)[0].body["activities"]
    assert (said["source"], said["request_id"]) == ("reward", "r1")


def test_rewards_are_bounded_expire_and_come_once(
    bridge: DTESNDynamicIntegration, clock: Clock
) -> None:
    bridge.remember("r1", "2.weight", action())
    bridge.remember("r2", "2.weight", action())
    with pytest.raises(RuleError, match="waits for its reward already"):
        bridge.remember("r1", "2.weight", action())
    with pytest.raises(RuleError, match="2 requests wait"):
        bridge.remember("r3", "2.weight", action())
    run(bridge.reward("r1", 1.0))
    for request_id in ("r1", "unknown"):
        with pytest.raises(rules.UnknownRequest, match="nothing waits"):
            run(bridge.reward(request_id, 1.0))
    clock.now = 10.0
    with pytest.raises(rules.UnknownRequest, match="older than 10 s"):
        run(bridge.reward("r2", 1.0))
    assert bridge.get_integration_status()["waiting_rewards"] == 0
    with pytest.raises(RuleError, match="no reward"):
        bridge.remember("r4", "2.weight", action(), rule="oja")
    with pytest.raises(RuleError, match="action as well"):
        bridge.remember("r4", "2.weight", {k: action()[k] for k in ("x", "mean")})
    bridge.remember("r5", "2.weight", action())
    with pytest.raises(RuleError, match="not finite"):
        run(bridge.reward("r5", float("nan")))
    assert run(bridge.reward("r5", 1.0))["success"]  # a bad reward does not use the action up


def test_only_a_retry_of_its_reward_finds_an_answered_action(
    bridge: DTESNDynamicIntegration,
) -> None:
    sent = action()
    bridge.remember("r1", "2.weight", sent)
    sent["x"].fill_(7.0)  # what is remembered is what was sent
    before = weight(bridge)
    key = Caller(idempotency_key="a")
    first = run(bridge.reward("r1", 1.0, caller=key))
    assert run(bridge.reward("r1", 1.0, caller=key))["update_id"] == first["update_id"]
    for other in (Caller(idempotency_key="b"), Caller()):
        with pytest.raises(rules.UnknownRequest, match="rewarded already"):
            run(bridge.reward("r1", 1.0, caller=other))
    score = action()["action"] - action()["mean"]
    assert torch.allclose(weight(bridge), before + 0.01 * score.mT @ action()["x"], atol=1e-7)


def test_a_restart_forgets_what_waits_and_says_so(bridge: DTESNDynamicIntegration) -> None:
    bridge.remember("r1", "2.weight", action())
    restarted = DTESNDynamicIntegration(bridge.dynamic_manager)
    with pytest.raises(rules.UnknownRequest, match="before this process started"):
        run(restarted.reward("r1", 1.0))
    assert bridge.dynamic_manager.log.live.head.seq == 0


# Other packages


def test_an_installed_packages_rule_learns_through_the_bridge(
    manager: DynamicModelManager, installed: Path
) -> None:
    install(installed, "decaying_rule", "decay")
    bridge = DTESNDynamicIntegration(manager, guards=Guards(norm=None))
    before = weight(bridge)
    seen = {"x": torch.ones(1, 5)}
    assert run(bridge.learn("2.weight", seen, rule="decay", learning_rate=0.25))["success"]
    assert torch.equal(weight(bridge), before - 0.25 * before)
    assert manager.log.events(limit=1)[0].body["rule"]["version"] == 3
