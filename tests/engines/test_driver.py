"""A server driven from the ledger: it shows the ledger's state, or what it showed, or it is fenced.

The answers of the server's model tell which weights it really has: those of a mixture, of a module
half loaded, of workers that disagree and of a stale prefix cache are the answers of no state.
"""

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engines.inference_server import SLOW_S
from tests.engines.replica import MODEL, QUERY, Replica, Watcher, driving, update
from tests.engines.tiny_model import WIDTH, answers
from tests.waiting import until
from weightledger import Ledger
from weightledger.ledger.engines.vllm import StateRef
from weightledger.ledger.engines.vllm.adapters import write_adapter
from weightledger.ledger.errors import EngineUnavailable, InvalidRequest, PublishFailed
from weightledger.ledger.manager import DynamicModelManager
from weightledger.ledger.writing.commands import LoadAdapter, MergeAdapter, UnloadAdapter
from weightledger.rules import DTESNDynamicIntegration, Guards

ALWAYS = 1000
ROUTES = (
    "/init_weight_transfer_engine",
    "/pause",
    "/update_weight_version",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/reset_prefix_cache",
    "/resume",
    "/is_paused",
    "/weight_info",
)
NEWER = {"/update_weight_version", "/start_weight_update", "/finish_weight_update", "/weight_info"}


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def state(manager: DynamicModelManager, position: str = "head") -> dict[str, list[int]]:
    """What a server with the weights at a position answers."""
    return answers(manager.log.history.state(position))


def apply(manager: DynamicModelManager, number: int = 1) -> dict[str, Any] | None:
    """The reply to an update; None when it was refused or could not be shown."""
    try:
        result: dict[str, Any] = run(manager.apply_incremental_update(update(number)))
    except EngineUnavailable:
        return None
    return result


def test_the_server_follows_updates_and_rollbacks(replica: Replica, folder: Path) -> None:
    with driving(replica, folder) as manager:
        before = state(manager)
        assert replica.answers() == before
        assert run(manager.apply_incremental_update(update()))["success"]
        assert replica.answers() == state(manager) != before
        if replica.surface == "vllm":
            head = manager.log.live
            assert replica.version() == f"ledger:1:{head.state.value.hex()[:16]}"
        run(manager.rollback_to_version("seq:0"))
        assert replica.answers() == before
        manager.log.verify_live()


FAULTS = [
    (route, kind, times)
    for route in ROUTES
    for kind, times in (
        ("refuse", 1),
        ("refuse", ALWAYS),
        ("refuse_after", ALWAYS),
        ("nonsense", 1),
    )
]
FAULTS += [("/update_weights", "half", times) for times in (1, ALWAYS)]


@pytest.mark.parametrize(("route", "kind", "times"), FAULTS)
def test_a_failing_step_leaves_the_old_state_the_new_one_or_a_fenced_replica(
    replica: Replica, folder: Path, route: str, kind: str, times: int
) -> None:
    if route in NEWER and replica.surface != "vllm":
        return
    with driving(replica, folder) as manager:
        replica.fail(route, kind, times)
        check_what_is_served(replica, manager, must_succeed=times == 1 and route not in ASKED)


# These are asked before the event is appended too, where one bad answer refuses the update.
ASKED = {"/weight_info", "/init_weight_transfer_engine"}


def check_what_is_served(
    replica: Replica,
    manager: DynamicModelManager,
    *,
    must_succeed: bool = False,
    late: bool = False,
) -> None:
    """Update while something fails, and watch; then it heals, and the head has to be served: at
    the next look, unless what was given up may still begin, at any time (`late`)."""
    before = state(manager)
    with Watcher(replica) as watcher:
        result = apply(manager)
    fault = manager.fault
    served = replica.answers()
    new = state(manager, "seq:1") if manager.log.history.head().seq else before
    for prompt, tokens in watcher.seen:
        assert tokens in (before[prompt], new[prompt]), "an answer of no state"
    if must_succeed:
        assert result is not None
        assert result["success"]
    if fault is None:
        assert result is not None
        assert served == state(manager) or (late and served is None)
    else:
        assert result is None or not result["success"]
        assert served in (None, before, new)
    if result is not None and not result["success"]:
        answer = manager.log.history.head()
        assert (answer.kind, answer.body["cause"]) == ("rolled_back", "publish_failed")
        assert answer.body["reason"] in result["reason"]
        assert state(manager) == before
    replica.heal()
    if late:
        until(lambda: serves_the_head(replica, manager), "it stays paused")
    else:
        assert serves_the_head(replica, manager)
    assert manager.log.verify().ok


def serves_the_head(replica: Replica, manager: DynamicModelManager) -> bool:
    """After one look at the server."""
    run(manager.catch_up())
    return manager.fault is None and replica.answers() == state(manager)


@pytest.mark.parametrize("route", ["/pause", "/update_weights"])
def test_a_slow_step_leaves_the_old_state_the_new_one_or_a_fenced_replica(
    replica: Replica, folder: Path, route: str
) -> None:
    with driving(replica, folder, timeout_s=0.5) as manager:
        replica.fail(route, "slow", ALWAYS)
        check_what_is_served(replica, manager, late=route == "/pause")


@pytest.mark.parametrize("pauses", [1, 2])
def test_a_pause_that_begins_once_it_was_given_up_is_ended(
    replica: Replica, folder: Path, pauses: int
) -> None:
    """It waits for the requests that run, so it may outlast all that was done about it."""
    with driving(replica, folder, timeout_s=0.5) as manager:
        replica.fail("/pause", "slow", ALWAYS)
        apply(manager)
        replica.heal()
        time.sleep(2 * SLOW_S)  # those that are under way have begun
        until(lambda: serves_the_head(replica, manager), "it stays paused")
        before = state(manager)
        for _ in range(pauses):  # each attempt's
            manager.engine._server.pause()
            assert replica.answers() is None
            assert serves_the_head(replica, manager)
        replica.fail("/resume", "refuse", ALWAYS)
        manager.engine._server.pause()
        with pytest.raises(EngineUnavailable, match="/resume"):
            manager.log.look_after()
        assert manager.fault is not None
        replica.heal()
        manager.log.look_after()
        assert manager.fault is None
        assert replica.answers() == before
        assert run(manager.apply_incremental_update(update(2)))["success"]


def test_a_pause_that_somebody_else_made_is_theirs(replica: Replica, folder: Path) -> None:
    with driving(replica, folder) as manager:
        assert run(manager.apply_incremental_update(update()))["success"]
        manager.engine._server.pause()
        manager.log.look_after()
        assert replica.answers() is None


def test_an_update_that_the_server_refuses_is_answered_by_a_rollback(
    replica: Replica, folder: Path
) -> None:
    with driving(replica, folder) as manager:
        before = state(manager)
        request = update(idempotency_key="once")
        replica.fail("/pause", "refuse", ALWAYS)
        result = run(manager.apply_incremental_update(request))
        assert not result["success"]
        assert "/pause" in result["reason"]
        assert run(manager.apply_incremental_update(request)) == result
        assert [e.kind for e in manager.log.events()] == ["rolled_back", "updated", "registered"]
        assert replica.answers() == before == state(manager)
        with pytest.raises(PublishFailed, match="/pause"):
            run(manager.rollback("seq:1"))
        replica.heal()
        assert run(manager.apply_incremental_update(update(2)))["success"]
        assert replica.answers() == state(manager) != before


@pytest.mark.parametrize("how", ["die", "die_after"])
def test_a_server_that_dies_in_an_update_comes_back_with_it(
    replica: Replica, folder: Path, how: str
) -> None:
    with driving(replica, folder) as manager:
        replica.fail("/update_weights", how)
        with pytest.raises(EngineUnavailable, match="is recorded and will be shown"):
            run(manager.apply_incremental_update(update(idempotency_key="k")))
        replica.wait_until_dead()
        assert "ConnectError" in str(manager.fault)
        with pytest.raises(EngineUnavailable):
            run(manager.catch_up())
        assert apply(manager, 2) is None
        assert manager.log.history.head().seq == 1
        replica.start()
        assert replica.answers() != state(manager)
        run(manager.catch_up())
        assert manager.fault is None
        assert replica.answers() == state(manager) != state(manager, "seq:0")
        assert run(manager.apply_incremental_update(update(idempotency_key="k")))["success"]
        assert manager.log.history.head().seq == 1


def test_a_restarted_server_is_noticed_and_gets_weights_and_adapters(
    replica: Replica, folder: Path
) -> None:
    with driving(replica, folder) as manager:
        engine = manager.engine
        run(manager.apply_incremental_update(update()))
        style = write_adapter(folder, "style", state_of_an_adapter(1), {"r": 1})
        engine.load_adapter("style", style)
        replica.kill()
        replica.start()
        assert apply(manager, 2) is None, "an update went to a server that lost its weights"
        assert "was restarted" in str(manager.fault)
        run(manager.catch_up())
        assert replica.answers() == state(manager)
        assert replica.adapters() == {"style": str(style)}
        engine.unload_adapter("style")


def test_a_driver_that_was_killed_is_continued(replica: Replica, folder: Path) -> None:
    with driving(replica, folder) as manager:
        before = state(manager)
    url = f"sqlite:///{folder / 'ledger.db'}"
    with Ledger.open(url) as ledger:  # appended, and nobody was left to push it
        ledger.model(MODEL).apply(update())
    assert replica.answers() == before
    with driving(replica, folder) as manager:
        assert replica.answers() == state(manager) != before
    with driving(replica, folder) as manager:
        assert manager.engine.report()["pause_ms"] is None, "pushed what was there"
        with Ledger.open(url) as ledger:
            ledger.model(MODEL).apply(update(2))
        run(manager.catch_up())
        assert replica.answers() == state(manager)


def test_what_a_killed_driver_left_half_done_is_put_right(replica: Replica, folder: Path) -> None:
    with driving(replica, folder) as manager:
        server = manager.engine._server
        server.pause()
        if replica.surface == "vllm":
            server.start()
            server.name_weights("ledger:updating")
        assert replica.answers() is None
    with driving(replica, folder) as manager:
        assert replica.answers() == state(manager)
        assert run(manager.apply_incremental_update(update()))["success"]
        assert replica.answers() == state(manager)


def test_a_server_that_is_not_there_at_start_is_fenced_and_brought_up_later(
    replica: Replica, folder: Path
) -> None:
    replica.kill()
    for policy in ("specification", "safe"):  # one that ruled before, and one that is an event
        with driving(replica, folder, policy=policy) as manager:
            assert manager.fault is not None
            assert apply(manager) is None
    with driving(replica, folder, policy="safe") as manager:
        assert [event.kind for event in manager.log.events()] == ["policy_changed", "registered"]
        replica.start()
        run(manager.catch_up())
        assert manager.fault is None
        assert replica.answers() == state(manager)


def test_only_whole_fused_groups_of_what_changed_are_sent(replica: Replica, folder: Path) -> None:
    with driving(replica, folder) as manager:
        sent: list[list[str] | None] = []
        stage = manager.engine._server.stage
        manager.engine._server.stage = lambda *a, **k: (sent.append(k["names"]), stage(*a, **k))[1]
        run(manager.apply_incremental_update(update()))
        parts = ("q_proj", "k_proj", "v_proj")
        assert [sorted(names or []) for names in sent] == [
            sorted(QUERY.replace("q_proj", part) for part in parts)
        ]


def test_verification_asks_the_workers_and_not_the_name(replica: Replica, folder: Path) -> None:
    with driving(replica, folder) as manager:
        run(manager.apply_incremental_update(update()))
        shown = manager.engine.report()["weight_version"]
        server, first = manager.engine._server, manager.log.history.require(0)
        target = StateRef(0, first.state_after)
        server.stage(MODEL, target, database=manager.config.url, names=None, since=None)
        if replica.surface == "vllm":
            server.start()
        server.load(target)
        if replica.surface == "vllm":
            server.finish(shown)
        with pytest.raises(EngineUnavailable, match="does not show"):
            manager.log.verify_live()
        run(manager.catch_up())
        manager.log.verify_live()


def test_an_adapter_gets_a_new_folder_for_each_version(replica: Replica, folder: Path) -> None:
    first = write_adapter(folder, "style", state_of_an_adapter(1), {"r": 1})
    second = write_adapter(folder, "style", state_of_an_adapter(2), {"r": 1})
    assert write_adapter(folder, "style", state_of_an_adapter(1), {"r": 1}) == first != second
    with driving(replica, folder) as manager:
        engine = manager.engine
        for style in (first, second, first):
            engine.load_adapter("style", style)
            assert replica.adapters() == {"style": str(style)}
        with pytest.raises(InvalidRequest, match="need a new folder"):
            engine.load_adapter("style", first)
        with pytest.raises(EngineUnavailable, match="No adapter found"):
            engine.load_adapter("other", folder / "absent")
        engine.unload_adapter("style")
        assert replica.adapters() == {}


def state_of_an_adapter(number: int) -> dict[str, torch.Tensor]:
    return {"lora_A.weight": torch.full((1, 4), float(number))}


def saved_adapter(folder: Path, number: int) -> Path:
    """A LoRA adapter of one module of the tiny model, in PEFT's form."""
    key = f"base_model.model.{QUERY.removesuffix('.weight')}"
    matrices = {
        f"{key}.lora_A.weight": torch.full((1, WIDTH), float(number)),
        f"{key}.lora_B.weight": torch.ones(WIDTH, 1),
    }
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    return write_adapter(folder / "made", f"adapter-{number}", matrices, config)


def test_the_server_follows_adapters_as_events(replica: Replica, folder: Path) -> None:
    first, second = saved_adapter(folder, 1), saved_adapter(folder, 2)
    with driving(replica, folder) as manager:
        run(manager.load_adapter("style", first))
        (one,) = replica.adapters().values()
        assert Path(one).is_relative_to(folder / "adapters" / "style")
        assert torch.equal(matrices(Path(one)), matrices(first))
        run(manager.load_adapter("style", second, inplace=True))
        (other,) = replica.adapters().values()
        assert other != one, "weights changed under the same path meet stale keys and values"
        run(manager.apply_incremental_update(update()))
        assert replica.adapters() == {"style": other}
        run(manager.rollback_to_version("seq:1"))
        assert replica.adapters() == {"style": one}
        assert replica.answers() == state(manager, "seq:0")
        run(manager.execute(LoadAdapter("more", first)))
    with driving(replica, folder) as manager:  # and another driver goes on
        assert set(replica.adapters()) == {"style", "more"}
        run(manager.execute(MergeAdapter("style")))
        assert list(replica.adapters()) == ["more"]
        assert replica.answers() == state(manager) != state(manager, "seq:0")
        run(manager.rollback_to_version("seq:0"))
        assert replica.adapters() == {}
        manager.log.verify_live()


def test_an_adapter_changes_while_no_request_runs(replica: Replica, folder: Path) -> None:
    with driving(replica, folder) as manager:
        server = manager.engine._server
        held_back: list[bool] = []
        change = server.load_adapter

        def watched(*given: Any, **options: Any) -> None:
            held_back.append(replica.answers() is None)
            change(*given, **options)

        server.load_adapter = watched
        run(manager.execute(LoadAdapter("style", saved_adapter(folder, 1))))
        assert held_back == [True]
        assert replica.answers() is not None
        run(manager.rollback_to_version("seq:0"))


def test_an_adapter_that_the_server_refuses_is_answered_by_a_rollback(
    replica: Replica, folder: Path
) -> None:
    with driving(replica, folder) as manager:
        replica.fail("/v1/load_lora_adapter", "refuse", ALWAYS)
        with pytest.raises(PublishFailed, match=r"not loaded: .*load_lora_adapter"):
            run(manager.execute(LoadAdapter("style", saved_adapter(folder, 1))))
        assert manager.log.adapters == {}
        assert manager.log.history.head().body["cause"] == "publish_failed"
        assert replica.answers() == state(manager)
        replica.heal()
        run(manager.execute(LoadAdapter("style", saved_adapter(folder, 1))))
        replica.kill()
        replica.start()
        with pytest.raises(EngineUnavailable):
            run(manager.execute(UnloadAdapter("style")))
        run(manager.catch_up())
        assert list(replica.adapters()) == ["style"]
        run(manager.execute(UnloadAdapter("style")))
        assert replica.adapters() == {}


def matrices(folder: Path) -> torch.Tensor:
    tensors = load_file(folder / "adapter_model.safetensors")
    return torch.cat([tensors[key].flatten() for key in sorted(tensors)])


def test_a_rules_update_that_cannot_be_shown_has_no_success(replica: Replica, folder: Path) -> None:
    with driving(replica, folder) as manager:
        before = replica.answers()
        replica.fail("/pause", "refuse", times=3)
        bridge = DTESNDynamicIntegration(manager, guards=Guards(norm=None))
        result = run(bridge.enhanced_incremental_update(QUERY, 0.01, 1.0))
        assert result["success"] is False
        assert "the state before" in result["reason"]
        last = manager.log.events(limit=1)[0]
        assert (last.kind, last.body["cause"]) == ("rolled_back", "publish_failed")
        assert replica.answers() == before
