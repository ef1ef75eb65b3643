"""Rollouts: which replicas show what is a function of the log and of their names."""

from dataclasses import replace

import pytest

from tests.fleet.conftest import Follow, until_shown, update
from tests.waiting import until
from weightledger import Caller, Log
from weightledger.ledger.errors import (
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    RolloutRuns,
)
from weightledger.ledger.events import ROLLOUTS
from weightledger.ledger.fleet.follower import Follower
from weightledger.ledger.history import rollouts

REPLICAS = [f"replica-{number}" for number in range(8)]


def shows(follower: Follower, seq: int) -> bool:
    return follower.readiness().seq == seq


def cohort_of(log: Log, percent: int) -> set[str]:
    """Who belongs to the newest rollout, worked out from the log alone."""
    rollout = rollouts.newest(log.history.store)
    assert rollout is not None and rollout.percent == percent
    return {name for name in REPLICAS if rollouts.cohort(rollout.id, name) < percent}


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
def test_a_canary_moves_exactly_its_cohort_and_aborting_returns_it(
    log: Log, follow: Follow
) -> None:
    good = update(log)
    fleet = {name: follow(name) for name in REPLICAS}
    # The same for every number of the log: the name of a rollout is the seq of its event.
    while True:
        started = log.start_rollout("head", 25)
        if 0 < len(cohort_of(log, 25)) < len(REPLICAS):
            break
        log.end_rollout("aborted")
    canaries = cohort_of(log, 25)
    bad = update(log, 5.0)
    for name, follower in fleet.items():
        until(lambda f=follower: f.readiness().position == bad)
        assert shows(follower, bad if name in canaries else good), name
        assert follower.readiness().lag_events == 0
    assert rollouts.rollout_of(started).id.endswith(str(started.seq))
    log.end_rollout("aborted")  # the model is what the others showed
    for follower in fleet.values():
        until_shown(follower, log.live.head.seq)
        assert follower.readiness().digest == log.live.state.value.hex()
    assert log.live.head.node == good
    # Recomputed from the log: what each should have shown at each event.
    event = log.history.store.by_number(ROLLOUTS, log.history.store.last_number(ROLLOUTS) - 1)
    assert event is not None
    then = rollouts.rollout_of(event)
    wanted = {name: rollouts.target(then, name) for name in REPLICAS}
    assert wanted == {name: None if name in canaries else good for name in REPLICAS}


def test_an_earlier_state_is_rolled_out_advanced_and_finished(log: Log, follow: Follow) -> None:
    old = update(log)
    new = update(log)
    follower = follow("a")
    log.start_rollout(f"seq:{old}", 0)
    until(lambda: follower.rollout is not None)
    assert shows(follower, new)
    log.advance_rollout(100)
    until(lambda: shows(follower, old))
    ana = Caller(actor="ana", reason="it did well", idempotency_key="k", expected_seq=new)
    with pytest.raises(PreconditionFailed):
        log.end_rollout("finished", caller=replace(ana, expected_seq=old))
    assert rollouts.newest(log.history.store).running
    last = update(log)  # the head goes on, and those who show the other state do not
    until(lambda: follower.readiness().position == last)
    assert shows(follower, old)
    late = follow("b")  # nor does who begins now
    assert shows(late, old) and late.readiness().ready
    ana = replace(ana, expected_seq=last)
    finished = log.end_rollout("finished", caller=ana)
    assert log.live.head.node == old
    moved = log.history.require(finished.seq - 1)  # both in one transaction, and hers
    assert (moved.kind, moved.body["cause"]) == ("rolled_back", "rollout_finished")
    for event in (moved, finished):
        note = log.history.store.annotation(event.seq)
        assert (note.actor, note.reason) == ("ana", "it did well")
    assert log.end_rollout("finished", caller=ana) == finished  # a retry
    for one in (follower, late):
        until_shown(one, finished.seq)
        assert one.readiness().digest == log.live.state.value.hex()
    again = update(log)
    until_shown(follower, again)


def test_one_rollout_runs_at_a_time_and_what_cannot_be_is_refused(log: Log) -> None:
    with pytest.raises(NotFound, match="no rollout runs"):
        log.advance_rollout(50)
    with pytest.raises(InvalidRequest, match="percent must be from 0 to 100"):
        log.start_rollout("head", 101)
    with pytest.raises(NotFound, match="does not reach there"):
        log.start_rollout("seq:99", 10)
    before = log.history.store.last_seq()
    started = rollouts.rollout_of(log.start_rollout("seq:0", 10))
    with pytest.raises(RolloutRuns, match=f"{started.id} runs"):
        log.start_rollout("seq:0", 10)
    with pytest.raises(NotFound, match="'rollout_77' does not run"):
        log.end_rollout("aborted", "rollout_77")
    ended = log.end_rollout("aborted", started.id)
    assert ended.seq == before + 2  # the head was what the others showed
    assert [one.status for one in rollouts.latest(log.history.store, 5)] == ["aborted"]


def test_states_that_a_rollout_holds_stay_restorable(log: Log) -> None:
    old = update(log)
    update(log)
    log.start_rollout(f"seq:{old}", 10)
    from weightledger.ledger.retention import _followed

    assert _followed(log.history) == {old}
    log.end_rollout("aborted")
    assert _followed(log.history) == set()
