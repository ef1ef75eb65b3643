"""Live traffic decides: what got worse is undone bit for bit, what did not stays."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults import folders
from tests.monitoring.models import Users, decided, heads, manager, update
from tests.waiting import PATIENCE_S, until
from weightledger import DynamicModelManager
from weightledger.ledger.errors import Pruned
from weightledger.ledger.monitoring import acting, cases
from weightledger.ledger.monitoring.deciding.comparisons import PAIRS
from weightledger.ledger.monitoring.deciding.deciders import Panel, Ruling
from weightledger.ledger.writing.commands import RollBack

METRICS = ("accuracy", "latency_ms", "throughput", "memory_usage_mb")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[DynamicModelManager]:
    one = manager(tmp_path, auto_rollback_metrics=METRICS)
    yield one
    one.close()


def undone(one: DynamicModelManager) -> dict[str, Any]:
    """The body of the rollback that is the newest event."""
    decided(one)
    event = one.log.live.head
    assert event.kind == "rolled_back", heads(one)
    return dict(event.body)


def test_a_slower_model_is_rolled_back_bit_for_bit(served: DynamicModelManager) -> None:
    users = Users(served)
    users.ask(PAIRS)
    before = served.log.live.state.value
    event = update(served, "delay", 30.0)
    assert served.log.live.state.value != before
    users.ask(1000)
    body = undone(served)
    assert served.log.live.state.value == before
    evidence = body["evidence"]
    assert body["cause"] == "degraded" and body["from_seq"] == event.seq
    assert evidence["policy"] == "specification" and evidence["decided_by"] == "policy"
    assert evidence["metric"] in ("latency_ms", "throughput") and evidence["confounded"] is True
    assert evidence["statistic"] >= 1 / evidence["alpha"] and 50 <= evidence["n_after"] <= 1000
    assert evidence["before"] == pytest.approx(20 * 1.046, rel=0.1) or evidence["before"] > 0
    assert "automatic rollback by policy specification" in body["reason"]


def test_who_decided_is_the_actor(served: DynamicModelManager) -> None:
    users = Users(served)
    users.ask(PAIRS)
    update(served, "delay", 80.0)
    users.ask(500)
    undone(served)
    events = served.log.events(actors=["policy:specification"])
    assert [one.kind for one in events] == ["rolled_back"]


def test_the_same_update_without_the_fault_stays(served: DynamicModelManager) -> None:
    users = Users(served)
    users.ask(PAIRS)
    event = update(served, "weight", 1.0)
    users.ask(PAIRS)
    users.tell("accuracy", [1.0] * 200)
    users.tell("memory_usage_mb", [500.0] * 50)
    decided(served)
    assert served.log.live.head.seq == event.seq


def test_lost_accuracy_told_from_outside_is_undone(served: DynamicModelManager) -> None:
    users = Users(served)
    users.tell("accuracy", [1.0] * 900 + [0.0] * 100)
    update(served, "weight", 1.0)
    users.tell("accuracy", ([1.0] * 6 + [0.0] * 4) * 80)
    assert undone(served)["evidence"]["metric"] == "accuracy"


def test_memory_that_grows_is_undone_long_before_it_doubles(served: DynamicModelManager) -> None:
    """One per cent an update, which no comparison with the state before would notice."""
    users = Users(served)
    size = 1000.0
    users.tell("memory_usage_mb", [size] * 20)
    for step in range(1, 30):
        size *= 1.01
        update(served, "weight", float(step))
        users.tell("memory_usage_mb", [size] * 20)
        decided(served)
        if served.log.live.head.kind == "rolled_back":
            break
    body = undone(served)
    assert body["evidence"]["metric"] == "memory_usage_mb" and size < 1150
    assert body["evidence"]["baseline"] == "version" and body["to_seq"] == 0


def test_many_small_losses_are_one_great_one(served: DynamicModelManager) -> None:
    users = Users(served)
    users.ask(PAIRS)
    for step in range(1, 20):
        update(served, "delay", 100 * (1.09**step - 1))
        users.ask(PAIRS)
        decided(served)
        if served.log.live.head.kind == "rolled_back":
            break
    body = undone(served)
    assert step == 2 and body["evidence"]["baseline"] == "version" and body["to_seq"] == 0


def test_updates_that_arrive_before_the_last_was_measured_are_judged_together(
    served: DynamicModelManager,
) -> None:
    users = Users(served)
    users.ask(PAIRS)
    before = served.log.live.state.value
    for step in range(10):
        update(served, "delay", 60.0 + step)
        users.ask(10)
    users.ask(500)
    undone(served)
    assert served.log.live.state.value == before


def test_too_little_traffic_decides_nothing(served: DynamicModelManager) -> None:
    users = Users(served)
    users.ask(30)
    event = update(served, "delay", 300.0)
    users.ask(3000)
    decided(served)
    assert served.log.live.head.seq == event.seq  # nothing known of before: never a guess


def test_a_rolled_back_state_is_not_tried_again(served: DynamicModelManager) -> None:
    users = Users(served)
    users.ask(PAIRS)
    update(served, "delay", 80.0)
    users.ask(500)
    undone(served)
    again = update(served, "delay", 80.0)
    assert again.kind == "update_rejected"
    assert again.body["evidence"]["cause"] == "rejected_before"
    assert update(served, "delay", 1.0).kind == "updated"


@pytest.mark.parametrize("damaged", ["nothing", "the rollback", "the rollback and a later one"])
def test_what_was_ruled_is_known_after_a_restart(tmp_path: Path, damaged: str) -> None:
    """Of a rollback that is damaged nobody knows who made it: what it left is not tried again."""
    one = manager(tmp_path, auto_rollback_metrics=METRICS)
    users = Users(one)
    users.ask(PAIRS)
    update(one, "delay", 80.0)
    users.ask(500)
    undone(one)
    rollbacks = [one.log.live.head.seq]
    if damaged == "the rollback and a later one":
        update(one, "delay", 1.0)
        rollbacks.append(one.log.rollback("seq:0").seq)
    update(one, "weight", 3.0)
    one.log.rollback("seq:0")
    one.log.create_version("as at first")
    one.close()
    if damaged != "nothing":
        with folders.without_triggers(tmp_path) as connection:
            for seq in rollbacks:
                folders.flip(connection, "events", "header", folders.event(seq))
    again = manager(tmp_path, auto_rollback_metrics=METRICS)
    try:
        assert update(again, "delay", 80.0).body["evidence"]["cause"] == "rejected_before"
        assert update(again, "delay", 2.0).kind == "updated"
    finally:
        again.close()


def test_what_was_measured_before_a_restart_is_a_baseline_after_it(tmp_path: Path) -> None:
    """And an update that nobody had judged when the process ended is judged then."""
    one = manager(tmp_path, auto_rollback_metrics=METRICS)
    rng = np.random.default_rng(3)
    for latency_ms in 20 * rng.lognormal(0, 0.3, PAIRS):
        one.collector.intake.record(0, float(latency_ms))
    update(one, "delay", 60.0)
    one.close()
    again = manager(tmp_path, auto_rollback_metrics=METRICS, on_mismatch="ledger")
    try:
        Users(again).ask(600)
        body = undone(again)
        assert body["to_seq"] == 0 and body["evidence"]["n_before"] == PAIRS
    finally:
        again.close()


def test_never_past_a_pinned_version(served: DynamicModelManager) -> None:
    from weightledger.ledger.writing.commands import CreateVersion, Pin

    users = Users(served)
    users.ask(PAIRS)
    event = update(served, "delay", 80.0)
    named = served.log.execute(CreateVersion("the customer's"))
    served.log.execute(Pin(named.name))
    users.ask(500)
    decided(served)
    head = served.log.live.head
    assert head.kind == "observed" and head.body["verdict"] == "held_back"
    assert "pinned" in head.body["reason"] and head.state_seq == event.seq


def test_only_so_many_rollbacks_in_a_while(tmp_path: Path) -> None:
    policy = tmp_path / "few.toml"
    policy.write_text("most = 1\nwindow_s = 3600\n")
    one = manager(tmp_path, auto_rollback_metrics=METRICS, policy=str(policy))
    users = Users(one)
    users.ask(PAIRS)
    try:
        update(one, "delay", 80.0)
        users.ask(500)
        undone(one)
        users.ask(PAIRS)
        event = update(one, "delay", 90.0)
        users.ask(500)
        decided(one)
        head = one.log.live.head
        assert head.kind == "observed" and head.body["verdict"] == "held_back"
        assert "the most there may be" in head.body["reason"] and head.state_seq == event.seq
    finally:
        one.close()


def test_a_verdict_that_comes_too_late_is_recorded_as_such(served: DynamicModelManager) -> None:
    """The next update was written while the policy ruled: it was not judged, so it stays."""
    users = Users(served)
    users.ask(PAIRS)
    update(served, "delay", 80.0)
    decider = served.supervision._acting
    execute = served.log.execute
    late = {}
    asked = threading.Event()

    class Late:
        history = served.log.history
        live = served.log.live

        def execute(self, command: Any) -> Any:
            if not late:
                # After the last request: one that met the late update would be judged with it.
                assert asked.wait(PATIENCE_S)
                late["event"] = update(served, "weight", 2.0)
            return execute(command)

    decider._log = Late()  # type: ignore[assignment]
    users.ask(500)
    asked.set()
    decided(served)
    head = served.log.live.head
    assert head.body["verdict"] == "superseded" and head.state_seq == late["event"].seq


@pytest.mark.parametrize(
    "config",
    [{"policy": "off"}, {"auto_rollback_threshold": 0.0}, {"auto_rollback_metrics": ("accuracy",)}],
)
def test_what_is_switched_off_undoes_nothing(tmp_path: Path, config: dict[str, Any]) -> None:
    one = manager(tmp_path, **{"auto_rollback_metrics": METRICS, **config})
    users = Users(one)
    users.ask(PAIRS)
    event = update(one, "delay", 300.0)
    users.ask(500)
    decided(one)
    assert one.log.live.head.state_seq == event.seq
    one.close()


def test_a_change_of_policy_is_an_event(tmp_path: Path) -> None:
    for policy in ("specification", "safe", "safe", "off"):
        manager(tmp_path, policy=policy).close()
    one = manager(tmp_path, policy="off")
    changes = [event.body for event in one.log.events(kinds=["policy_changed"])]
    assert [(body["before"], body["policy"]) for body in changes] == [
        ("safe", "off"),
        ("specification", "safe"),
    ]
    assert changes[1]["rules"]["trial"]["share"] == 0.5
    assert update(one, "weight", 1.0).body["evidence"]["policy"] == "off"
    one.close()


def test_a_clock_that_is_set_back_holds_nothing_back(tmp_path: Path) -> None:
    policy = tmp_path / "few.toml"
    policy.write_text("most = 1\ncool_down_s = 60\n")
    one = manager(tmp_path, auto_rollback_metrics=METRICS, policy=str(policy))
    decider = one.supervision._acting
    try:
        users = Users(one)
        users.ask(PAIRS)
        update(one, "delay", 80.0)
        users.ask(500)
        undone(one)
        clock = decider._clock
        decider._clock = lambda: clock() - 86_400
        users.ask(PAIRS)
        update(one, "delay", 90.0)
        users.ask(500)
        undone(one)
    finally:
        one.close()


@pytest.mark.parametrize("base", ["specification", "safe"])
def test_after_the_cool_down_what_was_held_back_is_undone(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once, however long it lasts; a harmful state does not stay for having waited."""
    monkeypatch.setattr(cases, "_ASK_AGAIN_S", 0.0)
    policy = tmp_path / "slow.toml"
    policy.write_text(f'base = "{base}"\ncool_down_s = 600\n')
    one = manager(tmp_path, auto_rollback_metrics=METRICS, policy=str(policy))
    decider = one.supervision._acting
    try:
        users = Users(one)
        users.ask(PAIRS)
        update(one, "delay", 80.0)
        users.ask(1000)
        undone(one)
        users.ask(PAIRS)
        event = update(one, "delay", 90.0)
        for _ in range(5):
            users.ask(400)
            decided(one)
        head = one.log.live.head
        assert head.kind == "observed" and head.body["verdict"] == "held_back", heads(one)
        assert "cool_down_s is 600" in head.body["reason"] and head.state_seq == event.seq
        assert [each.seq for each in one.log.events(kinds=["observed"])] == [head.seq]
        clock = decider._clock
        decider._clock = lambda: clock() + 601
        until(lambda: (users.ask(50), decided(one), one.log.live.head.kind == "rolled_back")[2])
        assert one.log.live.head.body["from_seq"] == event.seq
    finally:
        one.close()


def renamed(folder: Path, table: str, name: str) -> None:
    """The database fails whoever asks for a table by the name that it had."""
    with contextlib.closing(sqlite3.connect(folder / "ledger.db")) as connection:
        connection.execute(f"ALTER TABLE {table} RENAME TO {name}")


@pytest.mark.parametrize("base", ["specification", "safe"])
def test_what_the_database_did_not_take_is_undone_once_it_does(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that was away for longer than a rollback is tried left harm for good."""
    monkeypatch.setattr(cases, "_ASK_AGAIN_S", 0.0)
    monkeypatch.setattr(acting, "_RETRIES_S", (0.01,))
    one = manager(tmp_path, auto_rollback_metrics=METRICS, policy=base)
    try:
        users = Users(one)
        users.ask(PAIRS)
        event = update(one, "delay", 80.0)
        users.ask(20)
        renamed(tmp_path, "events", "away")
        users.ask(1000)
        decided(one)
        renamed(tmp_path, "away", "events")
        assert one.log.live.head.seq == event.seq
        until(lambda: (users.ask(50), decided(one), one.log.live.head.kind == "rolled_back")[2])
        assert one.log.live.head.body["from_seq"] == event.seq
    finally:
        one.close()


def test_a_state_that_the_database_could_not_tell_of_at_first_is_judged(tmp_path: Path) -> None:
    """Its first request came while what was measured before could not be read: it was never looked
    at again."""
    one = manager(tmp_path, auto_rollback_metrics=METRICS)
    try:
        users = Users(one)
        users.ask(PAIRS)
        update(one, "delay", 80.0)
        renamed(tmp_path, "metric_rollups", "away")
        users.ask(100)
        renamed(tmp_path, "away", "metric_rollups")
        users.ask(1000)
        undone(one)
    finally:
        one.close()


@pytest.mark.parametrize("base", ["specification", "safe"])
def test_a_state_that_is_pruned_cannot_be_gone_back_to_and_somebody_is_told(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "_ASK_AGAIN_S", 0.0)
    one = manager(tmp_path, auto_rollback_metrics=METRICS, policy=base)
    users = Users(one)
    users.ask(PAIRS)
    event = update(one, "delay", 80.0)
    execute = one.log.execute

    class Gone:
        history, live = one.log.history, one.log.live

        def execute(self, command: Any) -> Any:
            if isinstance(command, RollBack):
                raise Pruned("the state after event 0 was pruned")
            return execute(command)

    one.supervision._acting._log = Gone()  # type: ignore[assignment]
    for _ in range(4):
        users.ask(400)
        decided(one)
    (told,) = one.log.events(kinds=["observed"])
    assert told.body["verdict"] == "held_back" and "pruned" in told.body["reason"]
    assert one.log.live.head.state_seq == event.seq
    one.close()


def test_what_the_log_refuses_is_asked_ever_less_often(tmp_path: Path) -> None:
    """A damaged state was rebuilt twice a second to find that out, and everybody's writes waited
    for that."""
    one = manager(tmp_path)
    try:
        event = update(one, "weight", 1.0)
        case = cases.Case(event, {event.seq}, Panel([]), {})
        pauses = []
        for _ in range(12):
            case.wait(told=True, refused=True)
            pauses.append(case.pause_s)
        assert pauses[0] < 1 and pauses[3] > 3 and 55 < pauses[-1] <= 65
        case.wait(told=True)  # by the policy: that is soon over
        case.wait()
        assert case.pause_s < 1
    finally:
        one.close()


def test_the_baseline_is_of_no_state_that_was_live_in_between(tmp_path: Path) -> None:
    """What the rolled back state was like made the bar lower for the next one."""
    one = manager(tmp_path, policy="off")

    def push(right: int, seq: int) -> None:
        labels = [{"metric": "accuracy", "value": float(n < right), "seq": seq} for n in range(100)]
        for _ in range(10):
            asyncio.run(one.push_metrics(labels))

    push(90, 0)
    bad = update(one, "weight", 5.0)
    push(30, bad.seq)
    back = one.log.rollback("seq:0")
    one.close()
    one = manager(tmp_path, auto_rollback_metrics=("accuracy", "latency_ms"), on_mismatch="ledger")
    try:
        users = Users(one)
        users.ask(200)
        assert set(users.seqs) == {back.seq}
        update(one, "weight", 1.0)
        users.ask(10)
        users.tell("accuracy", ([1.0] * 6 + [0.0] * 4) * 80)
        body = undone(one)
        assert body["evidence"]["metric"] == "accuracy"
        assert body["evidence"]["before"] == pytest.approx(0.9, rel=0.02)
    finally:
        one.close()


def test_what_two_servers_rule_is_done_once_and_no_alert(served: DynamicModelManager) -> None:
    users = Users(served)
    users.ask(PAIRS)
    event = update(served, "delay", 80.0)
    decider = served.supervision._acting
    ruling = Ruling("harmful", "latency_ms")
    done = decider.roll_back(event.seq, 0, ruling)
    assert done is not None and done.kind == "rolled_back"
    assert decider.roll_back(event.seq, 0, ruling) is None
    assert served.log.live.head.seq == done.seq
