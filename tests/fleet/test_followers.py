"""Replicas: they show what the log says, prove it, and say how they stand."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fleet.conftest import MODEL, Follow, base, make, until_shown, update
from tests.waiting import until
from weightledger import Ledger, Log, TorchEngine
from weightledger.ledger.errors import NotFound, OperationDisabled, StorageError, WeightsMismatch
from weightledger.ledger.fleet.reporting import Reporter
from weightledger.ledger.fleet.served import served
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.store.replica_rows import ReplicaStanding, Said, Shown


def test_a_replica_shows_what_others_write(log: Log, follow: Follow) -> None:
    follower = follow()
    said = follower.readiness()
    assert (said.state, said.seq, said.stale, said.lag_events) == ("ready", 0, False, 0)
    assert said.digest == log.live.state.value.hex()
    for _ in range(5):
        last = update(log)
    until_shown(follower, last)
    said = follower.readiness()
    assert (said.seq, said.digest) == (last, log.live.state.value.hex())
    log.rollback("seq:2")
    until_shown(follower, last + 1)
    assert follower.readiness().digest == log.live.state.value.hex()
    log.create_version("named")  # no other state
    until_shown(follower, last + 2)
    assert follower.readiness().seq == last + 1


def test_whatever_the_engine_begins_with_the_ledgers_weights_win(log: Log, follow: Follow) -> None:
    update(log)
    other = base()
    with torch.no_grad():
        other.weight.fill_(7.0)
    follower = follow(engine=TorchEngine(other))
    with follower.lease() as live:
        assert live.digest == log.live.state.value
        assert torch.equal(live.module.weight, log.state()["weight"])


def test_nothing_is_written_through_a_replica(log: Log, follow: Follow) -> None:
    follower = follow()
    before = log.history.store.last_seq()
    refused = "replica 'r1' follows the log"
    for write in (
        lambda: update(follower.log),
        lambda: follower.log.create_version("mine"),
        lambda: follower.log.rollback("seq:0"),
        lambda: follower.log.gc(dry_run=False),
        lambda: follower.log.redact("seq:0"),
    ):
        with pytest.raises(OperationDisabled, match=refused):
            write()
    assert log.history.store.last_seq() == before


def test_a_model_that_nobody_registered_is_no_replicas_to_make(fleet_url: str) -> None:
    with Ledger.open(fleet_url) as ledger:
        with pytest.raises(NotFound, match=MODEL):
            ledger.follow("other", engine=TorchEngine(base()))
        assert ledger.models() == [MODEL]
        with pytest.raises(WeightsMismatch):
            ledger.follow(MODEL, engine=TorchEngine(torch.nn.Linear(3, 3)))


def test_a_late_joiner_catches_up_with_a_long_log(log: Log, follow: Follow) -> None:
    follower = follow("early")
    for _ in range(70):  # more than are read at a time
        last = update(log)
    until_shown(follower, last)
    late = follow("late")
    assert late.readiness().digest == follower.readiness().digest == log.live.state.value.hex()


def test_weights_that_are_not_the_ledgers_take_a_replica_out_at_once(
    log: Log, follow: Follow
) -> None:
    engine = TorchEngine(base())
    follower = follow(engine=engine)
    with torch.no_grad():
        engine.tensor("bias").add_(1.0)
    until(lambda: follower.readiness().state == "fenced")
    said = follower.readiness()
    assert not said.ready and "changed without the ledger: bias" in str(said.reason)


def test_a_digest_is_computed_and_not_believed(
    log: Log, fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that says it shows a state and shows another is never ready."""
    engine = TorchEngine(base())
    publish = engine.publish

    def wrong(prepared, *, seq: int, digest: bytes) -> None:
        publish(prepared, seq=seq, digest=digest)
        engine.tensor("bias").data.numpy()[:] = 9.0  # which no counter of torch's sees

    monkeypatch.setattr(engine, "publish", wrong)
    update(log)
    with Ledger.open(fleet_url) as ledger, pytest.raises(WeightsMismatch, match="weights/bias"):
        ledger.follow(MODEL, engine=engine)


def test_reports_say_who_shows_what(log: Log, follow: Follow) -> None:
    follower = follow()
    last = update(log)
    until_shown(follower, last)
    replicas = log.history.store.replicas

    def reported() -> bool:
        (row,) = replicas.all()
        return row.standing.seq == last

    until(reported)
    (row,) = replicas.all()
    assert (row.replica, row.incarnation, row.leased) == ("r1", 1, True)
    assert (row.standing.state, row.standing.digest) == ("ready", log.live.state.value)
    shown, later = replicas.shown_around("r1", row.seen_at)
    assert shown is not None and later is None
    assert (shown.seq, shown.digest) == (last, log.live.state.value)


def test_a_state_that_a_report_names_is_among_those_it_says_were_shown(
    log: Log, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas = log.history.store.replicas
    reported: list[int | None] = []
    shown = Reporter.shown

    def report_first(reporter: Reporter, *state: Any) -> None:
        """As if the thread that follows were held up between showing a state and saying so."""
        if state[1] is not None and state[1] > 0:
            (before,) = replicas.all()
            reporter.changed()
            until(lambda: replicas.all()[0].seen_at > before.seen_at)
            reported.append(replicas.all()[0].standing.seq)
        shown(reporter, *state)

    monkeypatch.setattr(Reporter, "shown", report_first)
    follow()
    update(log)
    until(lambda: bool(reported))
    assert reported == [0]


def test_states_that_followed_each_other_at_once_stay_in_order(log: Log) -> None:
    """However long the statements take that write them: `served` gives the last one."""
    replicas = log.history.store.replicas
    incarnation = replicas.begin("r", "host", None, "0", 10.0)
    began = time.monotonic()
    count = 0

    def showing(states: int) -> Said:
        nonlocal count
        first, count = count + 1, count + states
        last = ReplicaStanding("ready", None, count, count, 0, b"", 0, 0.0)
        return lambda: (last, [Shown(n, began, n, n, b"") for n in range(first, count + 1)])

    for states in (3, 1, 2):
        replicas.report("r", incarnation, showing(states), 10.0)
        (row,) = replicas.all()
        assert served(log.history, "r", row.seen_at).seq == count
    first, later = replicas.shown_around("r", 0)
    assert first is None and later is not None and later.number == 0


def test_a_replica_is_heard_of_when_it_was_asked_and_not_later(log: Log) -> None:
    """What it shows while its report is being written is not what it was heard of with."""
    replicas = log.history.store.replicas
    incarnation = replicas.begin("r", "host", None, "0", 10.0)

    def said() -> tuple[ReplicaStanding, list[Shown]]:
        end = time.monotonic() + 0.05  # as a slow one; SQLite's clock has milliseconds
        while time.monotonic() < end:
            pass
        now = time.monotonic()
        return ReplicaStanding("ready", None, 1, 1, 0, b"", 0, 0.0), [Shown(1, now, 1, 1, b"")]

    replicas.report("r", incarnation, said, 10.0)
    (row,) = replicas.all()
    shown, later = replicas.shown_around("r", row.seen_at)
    assert shown is not None and shown.number == 0
    assert later is not None and later.seq == 1


def test_a_second_process_of_the_same_name_takes_over(log: Log, follow: Follow) -> None:
    first = follow("same")
    second = follow("same")
    update(log)
    until(lambda: first.readiness().state == "fenced")
    assert "give each a name of its own" in str(first.readiness().reason)
    assert (first.incarnation, second.incarnation) == (1, 2)
    assert second.readiness().ready


def _put_back(log: Log, seq: int) -> None:
    """The log as a copy made after event `seq` has it."""
    database = log.history.store.home._database
    with database.write() as execute:
        tables = ["annotations", "touches", "events"]
        database.backend.unprotect(execute, tables)
        for table in tables:
            execute(f"DELETE FROM {table} WHERE event_key & {SEQ_MASK} > {seq}")
        database.backend.protect(execute, tables)


@pytest.mark.parametrize("further", [0, 3, 4], ids=["shorter", "as long", "longer"])
def test_a_replica_of_a_log_that_an_older_copy_took_the_place_of_does_not_vouch_for_it(
    log: Log, follow: Follow, fleet_url: str, further: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said to be ready, at no lag, with a state that is in no log any more."""
    monkeypatch.setattr("weightledger.ledger.fleet.follower._COMPARE_S", 0.1)
    for _ in range(4):
        last = update(log)
    follower = follow()
    until_shown(follower, last)
    _put_back(log, 1)
    with Ledger.open(fleet_url, upgrade=False) as ledger:
        other = ledger.model(MODEL)
        for number in range(further):
            update(other, 5.0 + number)
        until(lambda: not follower.readiness().ready, "the replica vouches for what it shows")
        said = follower.readiness()
        assert said.state == "fenced" and "not the one that was followed" in said.reason
        update(other, 11.0)
        assert not follower.wait_for(last + 1, 1.0)
    follow("r2")  # who starts now follows the log as it is
    assert follower.readiness().seq == last


def test_a_replica_stops_at_once_though_there_is_no_news(
    fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked for news for up to a second more, and for what is proposed."""
    forever_s = 300.0
    for name in ("fleet.follower._LOOK_S", "fleet.preparing._LOOK_S", "sql.wakeups.POLL_S"):
        monkeypatch.setattr(f"weightledger.ledger.{name}", forever_s)
    monkeypatch.setattr("weightledger.ledger.sql.wakeups._LISTENED_S", forever_s)
    with Ledger.open(fleet_url, upgrade=False) as ledger:
        with ledger.follow(MODEL, replica="r1", prepares=True) as follower:
            waiting = follower._ending, follower._preparer._ending
            until(lambda: all(one._waiting for one in waiting), "it does not wait for news")
            began_s = time.monotonic()
        assert time.monotonic() - began_s < forever_s


def test_a_file_that_lost_its_name_is_written_and_followed_no_more(tmp_path: Path) -> None:
    """What was answered as recorded would have been in a file that nobody finds again."""
    folder, away = tmp_path / "data", tmp_path / "away"
    folder.mkdir()
    url = f"sqlite:///{folder}/ledger.db"
    make(url)
    with Ledger.open(url) as ledger, Ledger.open(url, upgrade=False) as followed:
        log = ledger.model(MODEL)
        with followed.follow(MODEL, replica="r1") as follower:
            until_shown(follower, update(log))
            folder.rename(away)
            with pytest.raises(StorageError, match="moved, removed or replaced"):
                update(log)
            until(lambda: follower.readiness().stale, "the replica follows a file without a name")
            assert "moved, removed or replaced" in follower.readiness().reason
            folder.write_text("a file in the folder's place")
            with pytest.raises(StorageError, match="moved, removed or replaced"):
                update(log)
            folder.unlink()
            away.rename(folder)
            until_shown(follower, update(log))
            assert not follower.readiness().stale
