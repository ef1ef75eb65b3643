"""The two-person rule: what one person writes waits for another, and happens exactly once."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.planned import Planned
from weightledger import (
    Caller,
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    InvalidRequest,
    Ledger,
    NotFound,
)
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import (
    AwaitingApproval,
    Conflict,
    NotAllowed,
    PreconditionFailed,
    RolloutRuns,
)
from weightledger.ledger.history import rollouts
from weightledger.ledger.log import Log
from weightledger.ledger.redaction import redact
from weightledger.ledger.writing.approval_commands import Decide
from weightledger.ledger.writing.caller import ANYONE
from weightledger.ledger.writing.commands import (
    LoadAdapter,
    Pin,
    PlaceHold,
    Record,
    Redact,
    Release,
    Retire,
)
from weightledger.ledger.writing.policy import Policy
from weightledger.ledger.writing.recording import record_command
from weightledger.ledger.writing.rollout_commands import AdvanceRollout, EndRollout, StartRollout
from weightledger.ledger.writing.stored_commands import restore, store
from weightledger.ledger.writing.update_commands import ApplyUpdates, batch_command, update_command

ANA, BO = Caller(actor="ana", reason="it drifts"), Caller(actor="bo", reason="looked at it")
RULE = Policy(two_person=True)
ENDS = ("finished", "aborted")


def opened(ledger: Ledger) -> Log:
    return ledger.model("m", base={"w": torch.zeros(4), "v": torch.zeros(2, 2)}, policy=RULE)


def update(value: float = 1.0, **fields: Any) -> IncrementalUpdateRequest:
    given = {"actor": "ana", "reason": "it drifts", "metadata": {"n": 1}, **fields}
    return IncrementalUpdateRequest("w", value, 1.0, **given)


def waits(log: Log, ask: Any) -> str:
    with pytest.raises(AwaitingApproval) as told:
        ask()
    return told.value.approval_id


def test_an_update_waits_and_is_carried_out_once_approved(database_url: str) -> None:
    with Ledger.open(database_url) as ledger:
        log = opened(ledger)
        name = waits(log, lambda: log.apply(update()))
        assert torch.equal(log.state()["w"], torch.zeros(4))
        (waiting,) = log.approvals()
        assert (waiting.id, waiting.state, waiting.requested_by) == (name, "pending", "ana")
        event = log.approve(name, caller=BO)
        assert torch.equal(log.state()["w"], torch.ones(4))
        note = log.history.store.annotation(event.seq)
        assert note is not None
        assert (note.actor, note.reason, note.metadata) == ("ana", "it drifts", '{"n":1}')
        (done,) = log.approvals()
        assert (done.state, done.decided_by, done.outcome) == ("carried out", "bo", event)
        kinds = [one.kind for one in log.events()][::-1]
        assert kinds == ["registered", "approval_requested", "approval_decided", "updated"]
        assert verify(log.history).ok


def test_nobody_approves_what_they_asked_for(sqlite_url: str) -> None:
    with Ledger.open(sqlite_url) as ledger:
        log = opened(ledger)
        name = waits(log, lambda: log.apply(update()))
        for decide in (log.approve, log.reject):
            with pytest.raises(NotAllowed, match="second person"):
                decide(name, caller=ANA)
            with pytest.raises(InvalidRequest, match="who takes it"):
                decide(name, caller=ANYONE)
            for unknown in ("approval_9", "approval_", "approval_-1", "update_1", "approval_٣"):
                with pytest.raises(NotFound):
                    decide(unknown, caller=BO)
        assert [one.state for one in log.approvals()] == ["pending"]
        redact(log.history, [log.approvals()[0].request.seq], ["actor"])
        with pytest.raises(NotAllowed, match="redacted"):
            log.approve(name, caller=BO)


def test_a_decision_is_taken_once(sqlite_url: str) -> None:
    with Ledger.open(sqlite_url) as ledger:
        log = opened(ledger)
        first, second = (waits(log, lambda n=n: log.apply(update(n))) for n in (1.0, 2.0))
        log.reject(first, caller=BO)
        log.approve(second, caller=BO)
        for name in (first, second):
            for decide in (log.approve, log.reject):
                with pytest.raises(Conflict, match="already, by bo"):
                    decide(name, caller=Caller(actor="cy"))
        assert torch.equal(log.state()["w"], torch.full((4,), 2.0))


def test_a_crash_between_approval_and_write_is_made_up_for_once(database_url: str) -> None:
    with Ledger.open(database_url) as ledger:
        log = opened(ledger)
        name = waits(log, lambda: log.apply(update()))
        log.execute(Decide(name, True, BO))  # and the process dies here
        assert log.approvals()[0].state == "approved"
    with Ledger.open(database_url) as one, Ledger.open(database_url) as other:
        logs = [opened(ledger) for ledger in (one, other)]
        threads = [threading.Thread(target=log.carry_out_approved) for log in logs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for log in logs:
            log.catch_up()
            assert log.carry_out_approved() == []
        assert torch.equal(logs[0].state()["w"], torch.ones(4))
        assert len(logs[0].events(kinds=["updated"])) == 1
        with pytest.raises(Conflict, match="carried out already"):
            logs[1].approve(name, caller=BO)


def test_a_retry_waits_as_the_first_did_and_gets_the_outcome_later(sqlite_url: str) -> None:
    with Ledger.open(sqlite_url) as ledger:
        log = opened(ledger)
        asked = update(idempotency_key="k")
        name = waits(log, lambda: log.apply(asked))
        assert waits(log, lambda: log.apply(asked)) == name
        event = log.approve(name, caller=BO)
        assert log.apply(asked) == event
        other = update(2.0, idempotency_key="j")
        rejected = waits(log, lambda: log.apply(other))
        log.reject(rejected, caller=BO)
        with pytest.raises(NotAllowed, match="rejected"):
            log.apply(other)
        assert len(log.approvals()) == 2


def test_a_manager_starts_while_the_last_event_is_a_write_that_waits(tmp_path: Path) -> None:
    config = DynamicUpdateConfig(backup_dir=tmp_path, two_person_rule=True)
    model = torch.nn.Linear(1, 1, bias=False)
    for seq in (1, 2):
        manager = DynamicModelManager(model, "m", config=config)
        try:
            request = IncrementalUpdateRequest("weight", 1.0, 1.0, actor="ana")
            with pytest.raises(AwaitingApproval):
                asyncio.run(manager.apply_incremental_update(request))
            head = manager.log.history.head()
            assert (head.seq, head.kind) == (seq, "approval_requested")
        finally:
            manager.close()


def test_an_expected_state_that_is_gone_lapses(sqlite_url: str) -> None:
    with Ledger.open(sqlite_url) as ledger:
        log = opened(ledger)
        stale = waits(log, lambda: log.apply(update(expected_seq=0)))
        log.approve(waits(log, lambda: log.apply(update(3.0))), caller=BO)
        with pytest.raises(PreconditionFailed):
            log.approve(stale, caller=BO)
        lapsed = log.approvals()[1]
        assert (lapsed.id, lapsed.state) == (stale, "lapsed")
        assert log.carry_out_approved() == []
        assert torch.equal(log.state()["w"], torch.full((4,), 3.0))


def test_a_rollback_goes_where_it_was_asked_to(sqlite_url: str) -> None:
    with Ledger.open(sqlite_url) as ledger:
        log = opened(ledger)
        log.approve(waits(log, lambda: log.apply(update(1.0))), caller=BO)
        back = waits(log, lambda: log.rollback("head~1", caller=ANA))
        log.approve(waits(log, lambda: log.apply(update(1.0))), caller=BO)
        log.approve(back, caller=BO)
        assert torch.equal(log.state()["w"], torch.zeros(4))
        with pytest.raises(NotFound):
            log.rollback("v7", caller=ANA)


def test_a_rollout_moves_nothing_before_somebody_else_approves(sqlite_url: str) -> None:
    with Ledger.open(sqlite_url) as ledger:
        log = opened(ledger)
        log.approve(waits(log, lambda: log.apply(update(1.0))), caller=BO)
        good = log.live.head.seq
        start = waits(log, lambda: log.start_rollout("head~1", 25, caller=ANA))
        other = waits(log, lambda: log.start_rollout("head", 10, caller=ANA))
        with pytest.raises(NotFound, match="no rollout runs"):
            log.advance_rollout(50, caller=ANA)
        assert rollouts.newest(log.history.store) is None
        with pytest.raises(NotAllowed, match="second person"):
            log.approve(start, caller=ANA)
        begun = rollouts.rollout_of(log.approve(start, caller=BO))
        assert (begun.to, begun.percent, begun.running) == (0, 25, True)  # where it pointed then
        with pytest.raises(RolloutRuns):
            log.approve(other, caller=BO)
        assert [one.state for one in log.approvals() if one.id == other] == ["lapsed"]

        more = waits(log, lambda: log.advance_rollout(50, caller=ANA))
        ends = {how: waits(log, lambda how=how: log.end_rollout(how, caller=ANA)) for how in ENDS}
        assert rollouts.newest(log.history.store) == begun and log.live.head.node == good
        log.reject(ends["aborted"], caller=BO)
        assert rollouts.rollout_of(log.approve(more, caller=BO)).percent == 50
        assert log.live.head.node == good
        ended = rollouts.rollout_of(log.approve(ends["finished"], caller=BO))
        assert (ended.id, ended.status, log.live.head.node) == (begun.id, "finished", 0)
        assert torch.equal(log.state()["w"], torch.zeros(4))
        assert verify(log.history).ok


def test_what_cannot_wait_is_refused_and_what_the_ledger_does_itself_goes_on(
    sqlite_url: str,
) -> None:
    with Ledger.open(sqlite_url) as ledger:
        log = opened(ledger)
        for command in (
            LoadAdapter("a", "folder", caller=ANA),
            Planned(lambda staged: None, ANA),  # type: ignore[arg-type,return-value]
        ):
            with pytest.raises(InvalidRequest, match="two-person rule"):
                log.execute(command)
        with pytest.raises(InvalidRequest, match="says who asks"):
            log.apply(update(actor=None))
        log.create_version("by itself")
        assert waits(log, lambda: log.create_version("by ana", caller=ANA))
        log.rollback("seq:0", cause="degraded")
        assert log.history.head().kind == "rolled_back"
        with pytest.raises(InvalidRequest, match="says who asks"):
            log.retire_version("v0")
        log.create_version("the next one")
        assert waits(log, lambda: log.retire_version("v0", caller=ANA))
        (retired,) = log.retire_versions(keep=1)
        assert (retired.kind, retired.number) == ("version_retired", 0)


def commands(log: Log) -> list[Any]:
    specs, names = log.specs, log.first_names
    low_rank = {"a": [[1.0], [2.0]], "b": [[3.0, 4.0]]}
    return [
        update_command(update(), specs, names),
        update_command(update([1, 2, 3, 4]), specs, names),
        update_command(update([0.5, 0.25], indices=[3, 1]), specs, names),
        update_command(
            IncrementalUpdateRequest("v", None, 0.5, factors=low_rank, actor="ana"), specs, names
        ),
        update_command(update(float("1e-300"), update_type="replace"), specs, names),
        batch_command(
            [IncrementalUpdateRequest("w", 1.0), IncrementalUpdateRequest("v", 2.0, 0.1)],
            *(specs, names, ANA, {"run": 7}),
        ),
        record_command({"w": torch.ones(4), "v": torch.ones(2, 2)}, specs, names, ANA, '{"a":1}'),
        Pin("v1", False, ANA),
        Retire("v1", ANA),
        PlaceHold("v1", ANA),
        Release("hold_0", ANA),
        Redact((3, 4), ("actor",), ANA),
        StartRollout("seq:3", 10, ANA),
        AdvanceRollout(50, "rollout_4", ANA),
        EndRollout("aborted", "rollout_4", ANA),
    ]


AS_ASKED = (
    *(ApplyUpdates, Pin, Retire, PlaceHold, Release, Redact),
    *(StartRollout, AdvanceRollout, EndRollout),
)


def test_a_stored_command_is_the_command_that_was_asked_for(sqlite_url: str) -> None:
    with Ledger.open(sqlite_url) as ledger:
        log = opened(ledger)
        for command in commands(log):
            options, data = store(command)
            again = restore(options, data, log.specs, command.caller, command.metadata)
            assert type(again) is type(command)
            assert again.metadata == command.metadata
            if isinstance(command, AS_ASKED):
                assert again.digest == command.digest
            if isinstance(command, Record):
                assert isinstance(again, Record)
                assert all(
                    torch.equal(again.tensors[name], one) for name, one in command.tensors.items()
                )
