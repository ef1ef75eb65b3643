"""Trials: the new state beside the old one, and how they end."""

import asyncio
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.monitoring.models import Serving, Users, decided, heads, manager, update
from tests.waiting import until
from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    Ledger,
    TorchEngine,
)
from weightledger.ledger.errors import (
    AwaitingApproval,
    InvalidRequest,
    NotAllowed,
    NotFound,
    PreconditionFailed,
)
from weightledger.ledger.events import Event
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.trials import on_trial
from weightledger.ledger.retention import collect
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import RollBack

POLICY = """
base = "safe"
minimum = 50
[trial]
requests = 600
"""


def policy(folder: Path, text: str = POLICY) -> str:
    path = folder / "trying.toml"
    path.write_text(text)
    return str(path)


@pytest.fixture
def tried(tmp_path: Path) -> Iterator[DynamicModelManager]:
    one = manager(tmp_path, policy=policy(tmp_path))
    yield one
    one.close()


def test_a_share_of_the_requests_stays_on_the_state_before(tried: DynamicModelManager) -> None:
    """From the first request on: there is none between the update and its trial."""
    users = Users(tried)
    users.ask(20)
    assert set(users.seqs) == {0}
    event = update(tried, "weight", 1.0)
    users.seqs.clear()
    users.ask(400)
    new = sum(seq == event.seq for seq in users.seqs)
    assert set(users.seqs) == {0, event.seq} and 140 < new < 260
    assert event.body["evidence"]["trial"] == {"beside": 0, "share": 0.5}


def test_one_key_sees_one_state(tried: DynamicModelManager) -> None:
    event = update(tried, "weight", 1.0)
    seen: dict[str, set[int]] = {}
    for key in [f"conversation-{n}" for n in range(40)] * 3:
        with tried.lease(measuring=measuring(key)) as live:
            seen.setdefault(key, set()).add(live.seq)
    assert all(len(seqs) == 1 for seqs in seen.values())
    assert {seq for seqs in seen.values() for seq in seqs} == {0, event.seq}


def measuring(key: str) -> Any:
    from weightledger.ledger.monitoring.samples import Measuring

    return Measuring(key=key)


def test_a_harmless_state_is_promoted_and_then_everyone_sees_it(
    tried: DynamicModelManager,
) -> None:
    event = update(tried, "weight", 1.0)
    users = Users(tried)
    users.ask(1600)
    decided(tried)
    head = tried.log.live.head
    assert head.kind == "observed", heads(tried)
    assert (head.body["of"], head.body["verdict"]) == (event.seq, "promoted")
    assert head.body["evidence"]["decided_by"] == "policy"
    assert min(head.body["evidence"]["trial"]["requests"]) >= 600
    users.seqs.clear()
    users.ask(50)
    assert set(users.seqs) == {event.seq} and tried.supervision.trial() is None


@pytest.mark.parametrize(
    ("parameter", "value", "metric"), [("delay", 30.0, "latency_ms"), ("fails", 3.0, "failed")]
)
def test_a_harmful_state_is_undone_bit_for_bit(
    tried: DynamicModelManager, parameter: str, value: float, metric: str
) -> None:
    before = tried.log.live.state.value
    users = Users(tried)
    event = update(tried, parameter, value)
    users.ask(2000)
    decided(tried)
    head = tried.log.live.head
    assert head.kind == "rolled_back" and head.body["from_seq"] == event.seq
    evidence = head.body["evidence"]
    assert evidence["metric"] == metric and evidence["confounded"] is False
    assert evidence["statistic"] >= 1 / evidence["alpha"]
    assert tried.log.live.state.value == before
    users.seqs.clear()
    users.ask(50)
    assert set(users.seqs) == {head.seq} and tried.supervision.trial() is None


def test_memory_is_compared_with_before_since_both_states_share_it(tmp_path: Path) -> None:
    one = manager(tmp_path, policy="safe", auto_rollback_metrics=("memory_usage_mb",))
    users = Users(one)
    users.tell("memory_usage_mb", [1000.0] * 20)
    update(one, "weight", 1.0)
    users.tell("memory_usage_mb", [1200.0] * 20)
    decided(one)
    head = one.log.live.head
    assert head.kind == "rolled_back" and one.supervision.trial() is None
    assert head.body["evidence"]["metric"] == "memory_usage_mb"
    assert head.body["evidence"]["confounded"] is True
    one.close()


def test_accuracy_that_is_pushed_decides_a_trial(tmp_path: Path) -> None:
    one = manager(tmp_path, policy="safe")
    users = Users(one)
    event = update(one, "weight", 1.0)
    for _ in range(40):
        users.tell("accuracy", [1.0] * 9 + [0.0], seq=0)
        users.tell("accuracy", [1.0] * 6 + [0.0] * 4, seq=event.seq)
    decided(one)
    head = one.log.live.head
    assert head.kind == "rolled_back" and head.body["evidence"]["metric"] == "accuracy"
    one.close()


def test_accuracy_of_one_state_alone_says_nothing_of_a_trial(tmp_path: Path) -> None:
    """Whose labels come is nobody's coin: 97 of 100 right answers of the new state, and none of the
    old one, were each a bet won, and a harmless update was undone. Nor is it promoted."""
    one = manager(tmp_path, policy=policy(tmp_path))
    users = Users(one)
    event = update(one, "weight", 1.0)
    for _ in range(10):
        users.tell("accuracy", [1.0] * 97 + [0.0] * 3, seq=event.seq)
    users.ask(2000)
    decided(one)
    assert one.log.live.head.seq == event.seq and one.supervision.trial() is not None
    users.tell("accuracy", [1.0] * 97 + [0.0] * 3, seq=0)
    users.ask(50)
    decided(one)
    assert one.log.live.head.body["verdict"] == "promoted"
    one.close()


def test_accuracy_of_the_old_state_alone_proves_nothing(tmp_path: Path) -> None:
    """It was proven to be no worse by answers that it never gave."""
    text = POLICY + 'promote = "proven"\n'
    one = manager(
        tmp_path,
        policy=policy(tmp_path, text.replace("[trial]", "metrics = ['accuracy']\n[trial]")),
    )
    users = Users(one)
    event = update(one, "weight", 1.0)
    users.tell("accuracy", [1.0], seq=event.seq)
    for _ in range(50):
        users.tell("accuracy", [1.0] * 6 + [0.0] * 4, seq=0)
    users.ask(2000)
    decided(one)
    assert one.log.live.head.seq == event.seq and one.supervision.trial() is not None
    one.close()


@pytest.mark.parametrize("sides", [(9, 1), (1, 9), (1, 1)])
def test_as_many_labels_of_each_state_as_come(tmp_path: Path, sides: tuple[int, int]) -> None:
    """Of one state ten times as many answers are judged: no harm. A worse one is seen."""
    old, new = sides
    one = manager(tmp_path, policy=policy(tmp_path))
    users = Users(one)
    first = update(one, "weight", 1.0)
    for n in range(100):
        for seq, labels in ((0, old), (first.seq, new)):
            users.tell("accuracy", [float((n + k) % 10 > 0) for k in range(labels)], seq=seq)
    decided(one)
    assert one.log.live.head.seq == first.seq
    users.ask(1600)
    decided(one)
    assert one.log.live.head.body["verdict"] == "promoted"
    second = update(one, "weight", 2.0)
    for n in range(200):
        users.tell("accuracy", [float((n + k) % 10 > 0) for k in range(old)], seq=first.seq)
        users.tell("accuracy", [float((n + k) % 10 > 5) for k in range(new)], seq=second.seq)
    decided(one)
    head = one.log.live.head
    assert head.kind == "rolled_back" and head.body["evidence"]["metric"] == "accuracy"
    assert head.body["evidence"]["confounded"] is True, "no coin decided when they came"
    one.close()


def test_a_sample_of_nobody_knows_which_state_takes_no_part_in_a_trial(tmp_path: Path) -> None:
    one = manager(tmp_path, policy=policy(tmp_path))
    event = update(one, "weight", 1.0)
    for _ in range(3):
        wrong = [{"metric": "accuracy", "value": 0.0}] * 200
        asyncio.run(one.push_metrics(wrong))
        one.collector.tick()
        decided(one)
    assert one.log.live.head.seq == event.seq
    users = Users(one)
    users.ask(1600)
    decided(one)
    assert one.log.live.head.body["verdict"] == "promoted"
    one.close()


def test_what_a_policy_names_and_nobody_measured_promotes_nothing(tmp_path: Path) -> None:
    text = """
base = "safe"
metrics = ["latency_ms", "accuracy"]
[trial]
requests = 100
timeout_s = 1.5
on_timeout = "promote"
"""
    one = manager(tmp_path, policy=policy(tmp_path, text))
    try:
        event = update(one, "weight", 1.0)
        Users(one).ask(800)
        decided(one)
        assert one.log.live.head.seq == event.seq
        until(lambda: one.log.live.head.kind == "observed")
        body = one.log.live.head.body
        assert body["verdict"] == "inconclusive"
        assert "too little is known of accuracy; the trial goes on" in body["reason"]
    finally:
        one.close()


def test_an_objective_is_about_the_new_state_alone(tmp_path: Path) -> None:
    text = POLICY.replace("[trial]", "[objectives]\naccuracy = {allowed = 0.1}\n[trial]")
    one = manager(tmp_path, policy=policy(tmp_path, text))
    users = Users(one)
    event = update(one, "weight", 1.0)
    for _ in range(40):
        users.tell("accuracy", [1.0] * 7 + [0.0] * 3, seq=event.seq)
    decided(one)
    head = one.log.live.head
    assert head.kind == "rolled_back" and head.body["evidence"]["baseline"] == "objective"
    one.close()


def test_updates_that_arrive_meanwhile_join_and_are_undone_together(
    tried: DynamicModelManager,
) -> None:
    before = tried.log.live.state.value
    users = Users(tried)
    first = update(tried, "delay", 40.0)
    users.ask(60)  # fewer than a verdict wants of the new state
    second = update(tried, "weight", 1.0)
    assert second.body["evidence"]["trial"]["beside"] == 0
    users.seqs.clear()
    users.ask(60)
    assert set(users.seqs) == {0, second.seq}, "the newest beside the settled one, no other"
    users.ask(1500)
    decided(tried)
    head = tried.log.live.head
    assert head.kind == "rolled_back" and head.body["from_seq"] == second.seq
    assert tried.log.live.state.value == before and first.seq < second.seq


def test_an_update_that_joins_has_its_requests_counted_anew(tried: DynamicModelManager) -> None:
    users = Users(tried)
    update(tried, "weight", 1.0)
    users.ask(1000)
    second = update(tried, "weight", 2.0)
    users.ask(400)
    decided(tried)
    assert tried.log.live.head.seq == second.seq, "1400 requests in all, but 400 since"
    users.ask(1200)
    decided(tried)
    assert tried.log.live.head.body["of"] == second.seq


def test_all_requests_of_one_key_count_once(tried: DynamicModelManager) -> None:
    """One client that fails a thousand times is one that fails: no evidence about the state."""
    event = update(tried, "fails", 100.0)
    users = Users(tried)
    for client in itertools.count():
        users.ask(1, keys=itertools.repeat(f"client {client}"))
        if users.seqs[-1] == event.seq:
            break
    users.ask(1500, keys=itertools.repeat(f"client {client}"))
    assert users.seqs[-1500:] == [event.seq] * 1500
    decided(tried)
    assert tried.log.live.head.seq == event.seq
    users.ask(200, keys=(f"user-{n}" for n in itertools.count()))
    decided(tried)
    assert tried.log.live.head.kind == "rolled_back"


def test_too_little_traffic_is_said_once_and_waited_for(tmp_path: Path) -> None:
    text = POLICY + "timeout_s = 0.01\n"
    one = manager(tmp_path, policy=policy(tmp_path, text))
    try:
        event = update(one, "weight", 1.0)
        until(lambda: one.log.live.head.kind == "observed")
        head = one.log.live.head
        assert head.body["verdict"] == "inconclusive" and "the trial goes on" in head.body["reason"]
        assert one.supervision.trial() is not None
        users = Users(one)
        users.ask(1600)
        decided(one)
        last = one.log.live.head
        assert (last.body["of"], last.body["verdict"]) == (event.seq, "promoted")
        verdicts = [each.body["verdict"] for each in one.log.events(kinds=["observed"])]
        assert verdicts == ["promoted", "inconclusive"]
    finally:
        one.close()


def test_a_policy_may_say_that_what_is_not_proven_in_time_is_undone(tmp_path: Path) -> None:
    text = 'base = "strict"\nevaluation = "optional"\n[trial]\ntimeout_s = 0.01\n'
    one = manager(tmp_path, policy=policy(tmp_path, text))
    try:
        before = one.log.live.state.value
        update(one, "weight", 1.0)
        until(lambda: one.log.live.head.kind == "rolled_back")
        assert one.log.live.head.body["cause"] == "timed_out"
        assert one.log.live.state.value == before
    finally:
        one.close()


def test_what_is_not_proven_in_time_is_undone_once_nothing_holds_that_back(tmp_path: Path) -> None:
    """The time of a trial ran out once: a rollback that the policy held back then was not made
    later, nor one that the database did not take, and the trial went on for good."""
    text = 'base = "strict"\nevaluation = "optional"\ncool_down_s = 2\n[trial]\ntimeout_s = 0.01\n'
    one = manager(tmp_path, policy=policy(tmp_path, text))
    try:
        update(one, "weight", 1.0)
        until(lambda: one.log.live.head.kind == "rolled_back")
        second = update(one, "weight", 2.0)
        until(lambda: one.log.live.head.kind == "observed")
        assert one.log.live.head.body["verdict"] == "held_back"
        until(lambda: one.log.live.head.kind == "rolled_back")
        body = one.log.live.head.body
        assert (body["from_seq"], body["cause"]) == (second.seq, "timed_out")
        assert len(list(one.log.events(kinds=["observed"]))) == 1, "said once"
    finally:
        one.close()


def test_strict_accepts_nothing_unmeasured_and_one_trial_at_a_time(tmp_path: Path) -> None:
    one = manager(tmp_path, policy="strict")
    assert update(one, "weight", 1.0).body["evidence"]["cause"] == "unmeasured"
    one.close()
    text = 'base = "strict"\nevaluation = "optional"\n'
    one = manager(tmp_path, policy=policy(tmp_path, text))
    assert update(one, "weight", 1.0).kind == "updated"
    refused = update(one, "weight", 2.0)
    assert refused.kind == "update_rejected" and refused.body["evidence"]["cause"] == "on_trial"
    one.close()


def test_people_promote_and_abort(tried: DynamicModelManager) -> None:
    first = update(tried, "weight", 1.0)
    running = tried.supervision.trial()
    assert running is not None and running.id == first.name and running.beside == 0
    event = tried.supervision.promote(first.name, Caller(actor="ann"))
    assert event.body["verdict"] == "promoted" and event.body["evidence"]["decided_by"] == "person"
    users = Users(tried)
    users.ask(40)
    assert set(users.seqs) == {first.seq}

    second = update(tried, "weight", 2.0)
    event = tried.supervision.abort(second.name, Caller(actor="ann"))
    assert event.kind == "rolled_back" and event.body["cause"] == "aborted"
    assert event.node == first.seq and tried.supervision.trial() is None
    with pytest.raises(NotFound, match="none is running"):
        tried.supervision.promote(second.name, Caller())


def test_under_the_two_person_rule_nobody_ends_a_trial_alone(tmp_path: Path) -> None:
    """One key moved the weights back, or every request on, without anybody else's word."""
    one = manager(tmp_path, policy=policy(tmp_path), two_person_rule=True)
    ana, bo = Caller(actor="ana"), Caller(actor="bo")

    def waits(ask: Callable[[], object]) -> str:
        with pytest.raises(AwaitingApproval) as told:
            ask()
        return told.value.approval_id

    def updated(value: float) -> Event:
        request = IncrementalUpdateRequest("weight", value, update_type="replace", actor="ana")
        return one.log.approve(waits(lambda: asyncio.run(one.update(request))), caller=bo)

    try:
        first = updated(1.0)
        back = waits(lambda: one.supervision.abort(first.name, ana))
        assert one.log.live.head.state_seq == first.seq and one.supervision.trial() is not None
        with pytest.raises(NotAllowed, match="second person"):
            one.log.approve(back, caller=ana)
        assert one.log.approve(back, caller=bo).kind == "rolled_back"
        assert one.supervision.trial() is None

        second = updated(2.0)
        stays = waits(lambda: one.supervision.promote(second.name, ana))
        assert one.supervision.trial() is not None
        assert one.log.approve(stays, caller=bo).body["verdict"] == "promoted"
        until(lambda: one.supervision.trial() is None)

        third = updated(3.0)
        stays = waits(lambda: one.supervision.promote(third.name, ana))
        updated(4.0)
        with pytest.raises(PreconditionFailed):  # that one nobody has seen
            one.log.approve(stays, caller=bo)
        assert one.supervision.trial() is not None
    finally:
        one.close()


def test_what_another_process_writes_goes_on_trial_once_it_is_visible(
    tried: DynamicModelManager, tmp_path: Path
) -> None:
    """And ends its trial: nobody looks by the clock."""
    other = manager(tmp_path, policy=policy(tmp_path), on_mismatch="ledger")
    try:
        event = update(other, "weight", 1.0)
        assert tried.supervision.trial() is None
        tried.log.catch_up()
        until(lambda: tried.supervision.trial() is not None)
        running = tried.supervision.trial()
        assert running is not None and (running.id, running.beside) == (event.name, 0)
        other.supervision.promote(event.name, Caller(actor="ann"))
        tried.log.catch_up()
        until(lambda: tried.supervision.trial() is None)
        users = Users(tried)
        users.ask(30)
        assert set(users.seqs) == {event.seq}
    finally:
        other.close()


def test_an_update_of_another_server_joins_the_trial_of_both(
    tried: DynamicModelManager, tmp_path: Path
) -> None:
    """The first did not see it: it was blind for what the second wrote, and never heard the
    verdict, so that half of its requests stayed on the old state for good."""
    other = manager(tmp_path, policy=policy(tmp_path), on_mismatch="ledger")
    try:
        update(tried, "weight", 1.0)
        other.log.catch_up()
        until(lambda: other.supervision.trial() is not None)
        second = update(other, "delay", 40.0)
        tried.log.catch_up()
        until(lambda: (one := tried.supervision.trial()) is not None and one.id == second.name)
        other.supervision.promote(second.name, Caller(actor="ann"))
        tried.log.catch_up()
        until(lambda: tried.supervision.trial() is None)
        users = Users(tried)
        users.ask(30)
        assert set(users.seqs) == {second.seq}
        third = update(other, "delay", 90.0)
        tried.log.catch_up()
        until(lambda: tried.supervision.trial() is not None)
        fourth = update(other, "weight", 2.0)
        tried.log.catch_up()
        until(lambda: (one := tried.supervision.trial()) is not None and one.id == fourth.name)
        users.ask(1500)
        decided(tried)
        head = tried.log.live.head
        assert (head.kind, head.body["from_seq"]) == ("rolled_back", fourth.seq), third
        assert head.node == second.seq
    finally:
        other.close()


def test_what_another_server_promoted_is_not_undone_with_what_it_tried_next(
    tried: DynamicModelManager, tmp_path: Path
) -> None:
    """Where both were heard of at once the next one joined the trial that was over, whose rollback
    led to the state before what was promoted."""
    other = manager(tmp_path, policy=policy(tmp_path), on_mismatch="ledger")
    try:
        first = update(tried, "weight", 1.0)
        other.log.catch_up()
        until(lambda: other.supervision.trial() is not None)
        other.supervision.promote(first.name, Caller(actor="ann"))
        until(lambda: other.supervision.trial() is None)
        promoted = other.log.live.state.value
        second = update(other, "delay", 40.0)
        tried.log.catch_up()
        until(lambda: (one := tried.supervision.trial()) is not None and one.id == second.name)
        running = tried.supervision.trial()
        assert running is not None and running.requests_new == 0
        third = update(tried, "delay", 90.0)
        assert third.body["evidence"]["trial"]["beside"] == first.seq
        Users(tried).ask(1500)
        decided(tried)
        head = tried.log.live.head
        assert (head.kind, head.node) == ("rolled_back", first.seq)
        assert tried.log.live.state.value == promoted
    finally:
        other.close()


def test_a_person_who_aborts_a_trial_undoes_nothing_that_another_server_promoted(
    tried: DynamicModelManager, tmp_path: Path
) -> None:
    other = manager(tmp_path, policy=policy(tmp_path), on_mismatch="ledger")
    try:
        first = update(tried, "weight", 1.0)
        other.log.catch_up()
        until(lambda: other.supervision.trial() is not None)
        other.supervision.promote(first.name, Caller(actor="ann"))
        second = update(other, "delay", 40.0)
        tried.log.catch_up()
        until(lambda: (one := tried.supervision.trial()) is not None and one.id == second.name)
        assert tried.supervision.abort(second.name, Caller(actor="ann")).node == first.seq
    finally:
        other.close()


def test_what_is_promoted_elsewhere_before_its_rollback_is_made_stays(
    tried: DynamicModelManager, tmp_path: Path
) -> None:
    """It was rolled back to itself, and as a state that a policy undid never tried again."""
    other = manager(tmp_path, policy=policy(tmp_path), on_mismatch="ledger")
    busy = threading.Event()
    try:
        first = update(tried, "delay", 40.0)
        other.log.catch_up()
        until(lambda: other.supervision.trial() is not None)
        tried.supervision._acting.soon(busy.wait)
        Users(tried).ask(1500)
        case = tried.supervision._trials._course.case  # type: ignore[union-attr]
        assert case is not None and case.state == "acting"
        promoted = other.supervision.promote(first.name, Caller(actor="ann"))
        tried.log.catch_up()
        until(lambda: tried.supervision.trial() is None)
        busy.set()
        decided(tried)
        assert tried.log.live.head.seq == promoted.seq
    finally:
        busy.set()
        other.close()


def test_what_another_server_rolled_back_and_wrote_anew_is_another_trial(
    tried: DynamicModelManager, tmp_path: Path
) -> None:
    other = manager(tmp_path, policy=policy(tmp_path), on_mismatch="ledger")
    try:
        update(tried, "delay", 40.0)
        other.log.catch_up()
        other.log.execute(RollBack("v0"))
        harmless = update(other, "weight", 1.0)
        tried.log.catch_up()
        until(lambda: (one := tried.supervision.trial()) is not None and one.id == harmless.name)
        users = Users(tried)
        users.ask(1600)
        decided(tried)
        body = tried.log.live.head.body
        assert (body["of"], body["verdict"]) == (harmless.seq, "promoted")
    finally:
        other.close()


class Heavy(Serving):
    """Whose updates are too large for the event's own row."""

    def __init__(self) -> None:
        super().__init__()
        self.bulk = torch.nn.Parameter(torch.zeros(300_000))


def test_what_is_written_without_a_server_joins_a_trial_that_was_interrupted(
    tmp_path: Path,
) -> None:
    """The harm that was on trial was live for everybody once something was written on top of it."""
    one = manager(tmp_path, policy=policy(tmp_path))
    update(one, "delay", 60.0)
    one.close()
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        log = ledger.model("m")
        added = log.apply(IncrementalUpdateRequest("weight", 1.0, update_type="replace"))
    one = manager(tmp_path, policy=policy(tmp_path), on_mismatch="ledger")
    try:
        until(lambda: (it := one.supervision.trial()) is not None and it.id == added.name)
        users = Users(one)
        users.ask(1500)
        decided(one)
        head = one.log.live.head
        assert (head.kind, head.body["from_seq"], head.node) == ("rolled_back", added.seq, 0)
    finally:
        one.close()


def test_the_verdicts_are_read_once_however_many_states_may_be_on_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 200 updates without a policy had the last 200 verdicts read: a second and more for
    each list of trials, start and collection."""
    manager(tmp_path).close()
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        log = ledger.model("m")
        for number in range(12):
            log.apply(IncrementalUpdateRequest("weight", number + 1.0, update_type="replace"))
        asked = []
        events = History.events

        def counted(self: History, *args: Any, **options: Any) -> list[Event]:
            asked.append(args)
            return events(self, *args, **options)

        monkeypatch.setattr(History, "events", counted)
        assert on_trial(log.history) is None
        assert len(asked) == 1

        log.apply(IncrementalUpdateRequest("weight", 0.0, update_type="replace"))
        required = []
        require = History.require

        def looked_at(self: History, seq: int) -> Event:
            required.append(seq)
            return require(self, seq)

        monkeypatch.setattr(History, "require", looked_at)
        assert on_trial(log.history) is None
        assert len(required) == 2, "what was found settled is looked through again"


def test_a_rollback_into_a_trial_is_told_alike_by_who_looked_before_and_who_did_not(
    tmp_path: Path,
) -> None:
    one = manager(tmp_path, policy=policy(tmp_path))
    first = update(one, "weight", 1.0)
    one.close()
    more = IncrementalUpdateRequest("weight", 2.0, update_type="replace")
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        log = ledger.model("m")
        log.apply(more)
        log.rollback(first.name)
        assert on_trial(log.history) is None
        log.apply(more)
        with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as beside:
            fresh = on_trial(beside.model("m").history)
        assert fresh is not None and fresh.seq == first.seq
        assert on_trial(log.history) == fresh


def test_gc_keeps_the_state_that_a_trial_leads_back_to(tmp_path: Path) -> None:
    """It was nobody's version and an hour old: then harm could not be undone any more."""
    config = DynamicUpdateConfig(backup_dir=tmp_path, policy=policy(tmp_path))
    one = DynamicModelManager(TorchEngine(Heavy()), "m", config=config)
    try:
        for _ in range(3):
            bulk = torch.randn(300_000)
            request = IncrementalUpdateRequest("bulk", bulk, update_type="replace")
            settled = asyncio.run(one.update(request))
            one.supervision.promote(settled.name, Caller(actor="ann"))
        update(one, "delay", 60.0)
        asyncio.run(
            one.update(
                IncrementalUpdateRequest("bulk", torch.randn(300_000), update_type="replace")
            )
        )
        later = time.time_ns() // 1000 + 2 * 3_600_000_000
        collect(one.log.history, dry_run=False, now_us=lambda: later)
        Users(one).ask(1500)
        decided(one)
        head = one.log.live.head
        assert head.kind == "rolled_back" and head.node == settled.seq
    finally:
        one.close()


def test_a_rollback_by_hand_ends_a_trial(tried: DynamicModelManager) -> None:
    update(tried, "weight", 1.0)
    event = tried.log.execute(RollBack("v0"))
    assert tried.supervision.trial() is None
    users = Users(tried)
    users.ask(30)
    assert set(users.seqs) == {event.seq}
    (ended,) = tried.trials()
    assert (ended.status, ended.ended_at) == ("rolled back", event.recorded_at)
    tried.log.execute(RollBack("v0"))  # leaves no trial
    assert tried.trials() == [ended]


def test_a_policy_that_tries_nothing_says_that_a_trial_is_undecided(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It served the new state to everyone and said nothing."""
    one = manager(tmp_path, policy=policy(tmp_path))
    update(one, "weight", 1.0)
    one.close()
    for chosen, said in (("specification", True), (policy(tmp_path), False)):
        caplog.clear()
        one = manager(tmp_path, policy=chosen, on_mismatch="ledger")
        assert ("meets it, undecided" in caplog.text) is said
        if said:
            with pytest.raises(NotFound, match="Roll back to seq:0"):
                one.supervision.promote("update_1", Caller())
        assert one.trials()[0].status == "running"
        one.close()


def test_an_engine_of_one_version_compares_afterwards_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DynamicUpdateConfig(backup_dir=tmp_path, policy="safe")
    one = DynamicModelManager(Serving(), "m", config=config)
    try:
        assert "such verdicts are confounded" in caplog.text
        users = Users(one)
        users.ask(2000)
        update(one, "delay", 50.0)
        users.ask(600)
        decided(one)
        body = one.log.live.head.body
        assert body["cause"] == "degraded" and body["evidence"]["confounded"] is True
    finally:
        one.close()


def test_a_trial_and_no_threshold_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="auto_rollback_threshold 0 turns"):
        manager(tmp_path, policy="safe", auto_rollback_threshold=0.0)


CRASH = """
import os, sys
from pathlib import Path
from tests.monitoring.models import Serving, Users, manager, update
one = manager(Path(sys.argv[1]), policy=sys.argv[2])
update(one, "weight", 1.0)
event = update(one, "delay", 30.0)
Users(one).ask(60)  # fewer than a verdict wants of both states, or it may be undone before the kill
sys.stdout.write(f"{event.seq}\\n")
sys.stdout.flush()
os.kill(os.getpid(), 9)
"""


def test_a_trial_goes_on_after_kill_9_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = policy(tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path), chosen],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent.parent,
        env=os.environ,
        check=False,
    )
    assert killed.returncode == -9
    seq = int(killed.stdout)
    one = manager(tmp_path, policy=chosen, on_mismatch="ledger")
    try:
        assert "a trial was interrupted: it goes on" in caplog.text
        running = one.supervision.trial()
        assert running is not None and running.of == seq and running.beside == 0
        users = Users(one)
        users.ask(100)
        assert set(users.seqs) == {0, seq}
        one.log.verify_live()
        users.ask(2000)
        decided(one)
        head = one.log.live.head
        assert head.kind == "rolled_back" and head.node == 0
    finally:
        one.close()
