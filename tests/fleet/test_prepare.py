"""The gate before an append: real replicas build an update's state first, or it is refused."""

import hashlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import torch

from tests.fleet.conftest import MODEL, Follow, until_shown
from tests.fleet.test_fleet_faults import Child
from tests.waiting import until
from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    InvalidRequest,
    Ledger,
    Log,
)
from weightledger.api.server.settings import Settings
from weightledger.ledger.events import Event
from weightledger.ledger.history.replay import replay
from weightledger.ledger.projection import projector
from weightledger.ledger.projection.following import straight_on
from weightledger.ledger.sql.roles import grants
from weightledger.ledger.writing import preparing
from weightledger.ledger.writing.policy import Policy, Preparing, preparing_of

# A replica whose engine takes no bias above 99, as one that finds out only when it loads.
REPLICA = """
import sys, time
import torch
from weightledger import Ledger
from weightledger.ledger.engines.torch import TorchEngine

class Particular(TorchEngine):
    def prepare(self, tensors):
        if any(float(one.max()) > 99 for one in tensors.values()):
            raise RuntimeError("this kernel takes no weight above 99")
        return super().prepare(tensors)

url, name, kind = sys.argv[1:]
engine = Particular(torch.nn.Linear(8, 4)) if kind == "particular" else None
with Ledger.open(url, upgrade=False, connections=3) as ledger:
    with ledger.follow("m", replica=name, engine=engine, prepares=True):
        while True:
            time.sleep(60)
"""
WRITER = """
import sys
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.writing.policy import Policy, Preparing
with Ledger.open(sys.argv[1], upgrade=False) as ledger:
    rule = Policy(prepare=Preparing("all", timeout_s=float(sys.argv[2])))
    ledger.model("m", policy=rule).apply(IncrementalUpdateRequest("bias", 7.0))
"""

Start = Callable[..., Child]


@pytest.fixture
def replica(fleet_url: str, tmp_path: Path, log: Log) -> Iterator[Start]:
    """Starts replicas, processes of their own; killed at the end."""
    started: list[Child] = []

    def start(name: str, kind: str = "plain") -> Child:
        child = Child(REPLICA, tmp_path, name, fleet_url, name, kind)
        child.start()
        started.append(child)
        ready(log, name, child)
        return child

    yield start
    for child in started:
        child.kill()


def ready(log: Log, name: str, child: Child, incarnation: int = 1) -> None:
    def is_ready() -> bool:
        rows = {row.replica: row for row in log.history.store.replicas.all()}
        row = rows.get(name)
        return row is not None and (row.incarnation, row.standing.state) == (incarnation, "ready")

    until(is_ready, f"{name} is not ready", pid=child.pid)


def gated(ledger: Ledger, of: Any, timeout_s: float = 120.0, percent: int = 10) -> Log:
    return ledger.model(MODEL, policy=Policy(prepare=Preparing(of, percent, timeout_s)))


def apply(log: Log, value: float, **fields: Any) -> Event:
    return log.apply(IncrementalUpdateRequest("bias", value, 1.0, **fields))


def names(event: Event, key: str = "by") -> list[tuple[str, int]]:
    told = event.body["evidence"]["prepared"]
    return sorted((one["replica"], one["incarnation"]) for one in told[key])


def proposals(log: Log) -> int:
    return 0 if log.history.store.proposals.newest() is None else 1


def test_an_update_is_recorded_once_all_have_built_it_and_refused_when_one_cannot(
    log: Log, fleet_url: str, replica: Start
) -> None:
    with Ledger.open(fleet_url) as ledger:
        writer = gated(ledger, "all")
        nobody = apply(writer, 1.0)
        assert nobody.kind == "update_rejected"
        assert "no replica is there" in nobody.body["reason"]
        replica("a")
        replica("b", "particular")
        done = apply(writer, 1.0, idempotency_key="k")
        assert done.kind == "updated" and names(done) == [("a", 1), ("b", 1)]
        assert done.body["evidence"]["prepared"]["rule"] == "all"
        refused = apply(writer, 1000.0)
        assert refused.kind == "update_rejected"
        assert "replica 'b': RuntimeError: this kernel takes no" in refused.body["reason"]
        assert names(refused, "asked") == [("a", 1), ("b", 1)]
        assert writer.live.head.state_seq == done.seq and proposals(log) == 0
        # What a rollback goes back to was shown before: it waits for nobody.
        assert writer.rollback("head~1").kind == "rolled_back"
        assert apply(writer, 2.0).kind == "updated"
        assert apply(writer, 1.0, idempotency_key="k") == done
        assert writer.verify().problem is None


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
def test_what_is_not_attested_in_time_is_withdrawn_and_said_too_late(
    log: Log, fleet_url: str, replica: Start
) -> None:
    slow = replica("slow")
    replica("quick")
    with Ledger.open(fleet_url) as ledger:
        writer = gated(ledger, "all", timeout_s=1.0)
        slow.send(signal.SIGSTOP)
        refused = apply(writer, 1.0)
        slow.send(signal.SIGCONT)
        assert refused.kind == "update_rejected"
        assert refused.body["reason"] == "Not prepared: not in 1 s by 'slow'"
        assert proposals(log) == 0
        done = apply(gated(ledger, "all"), 1.0)  # what it says of the other goes nowhere
        assert done.kind == "updated" and names(done) == [("quick", 1), ("slow", 1)]


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
def test_a_replica_that_dies_over_it_has_not_prepared_it(
    log: Log, fleet_url: str, replica: Start
) -> None:
    replica("a")
    victim = replica("b")
    with Ledger.open(fleet_url) as ledger:
        writer = gated(ledger, "all")
        victim.send(signal.SIGSTOP)
        came: list[Event] = []
        asking = threading.Thread(target=lambda: came.append(apply(writer, 1.0)))
        asking.start()
        until(lambda: proposals(log) == 1, "nothing is proposed")
        victim.kill()
        victim.start()
        asking.join()
        (refused,) = came
        assert refused.kind == "update_rejected"
        assert "'b' was not heard of any more" in refused.body["reason"]
        ready(log, "b", victim, 2)
        assert names(apply(writer, 1.0)) == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
def test_a_writer_that_is_killed_while_it_asks_leaves_no_event_and_nothing_to_wait_for(
    log: Log, fleet_url: str, replica: Start, tmp_path: Path
) -> None:
    one = replica("a")
    before = log.history.store.last_seq()
    writer = Child(WRITER, tmp_path, "writer", fleet_url)
    one.send(signal.SIGSTOP)
    writer.start("500")
    until(lambda: proposals(log) == 1, "nothing is proposed", pid=writer.pid)
    writer.kill()
    left = log.history.store.proposals.newest()
    one.send(signal.SIGCONT)
    assert log.history.store.last_seq() == before
    with Ledger.open(fleet_url) as ledger:
        assert apply(gated(ledger, "all"), 1.0).seq == before + 1
        # One whose time is over is nobody's: no look shows it, no replica attests it, and who
        # proposes next takes it away.
        with psycopg.connect(fleet_url, autocommit=True) as connection:
            connection.execute("UPDATE proposals SET deadline = 1")
        assert left is not None and proposals(log) == 0
        assert not log.history.store.proposals.progress(left).open
        apply(gated(ledger, "all"), 2.0)
        with psycopg.connect(fleet_url) as connection:
            for table in ("proposals", "attestations"):
                assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
def test_canaries_are_always_the_same_and_others_are_not_waited_for(
    log: Log, fleet_url: str, replica: Start
) -> None:
    ranked = sorted("ab", key=lambda name: hashlib.sha256(name.encode()).digest())
    children = {name: replica(name) for name in "ab"}
    with Ledger.open(fleet_url) as ledger:
        writer = gated(ledger, "canary")
        children[ranked[1]].send(signal.SIGSTOP)
        done = apply(writer, 1.0)
        assert names(done) == [(ranked[0], 1)]
        assert done.body["evidence"]["prepared"]["rule"] == "canary"
        children[ranked[1]].send(signal.SIGCONT)
        # Held by a rollout, a replica would not show it, and is not asked.
        writer.start_rollout("head", 0)
        assert "no replica is there" in apply(writer, 2.0).body["reason"]
        writer.advance_rollout(100)
        assert names(apply(writer, 2.0)) == [("a", 1), ("b", 1)]


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
def test_rights_and_incarnations_decide_what_a_replica_may_say(
    log: Log, fleet_url: str, replica: Start
) -> None:
    from weightledger.ledger.store.proposal_rows import Attestation

    replica("a")
    store = log.history.store.proposals
    proposal = store.propose(b"{}", None, [("zed", 1)], 100.0)
    with psycopg.connect(fleet_url, autocommit=True) as owner:
        role = "preparing_replica"
        owner.execute(f"DROP ROLE IF EXISTS {role}")
        owner.execute(f"CREATE ROLE {role}")
        try:
            for statement in grants(role, follower=True):
                owner.execute(statement)
            owner.execute(f"SET ROLE {role}")
            insert = (
                "INSERT INTO attestations (model_id, proposal, replica, incarnation, attested_at)"
                " VALUES (1, %s, 'zed', 7, 0)"
            )
            owner.execute(insert, (proposal,))
            for refused in (
                "INSERT INTO proposals VALUES (1, 'x', 0, 0, '[]', '', NULL)",
                "UPDATE attestations SET incarnation = 1",
                "UPDATE proposals SET deadline = 0",
                "DELETE FROM attestations",
                "DELETE FROM proposals",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    owner.execute(refused)
            with pytest.raises(psycopg.errors.ForeignKeyViolation):
                owner.execute(insert, ("another",))
        finally:
            owner.execute("RESET ROLE")
            owner.execute(f"DROP OWNED BY {role}")
            owner.execute(f"DROP ROLE {role}")
    said = Attestation(b"d" * 32, None)
    assert store.attest(proposal, ("a", 1), said)
    assert not store.attest(proposal, ("a", 2), said) and not store.attest(
        proposal, ("nobody", 1), said
    )
    store.withdraw(proposal)
    assert not store.attest(proposal, ("a", 1), said)
    assert store.progress(proposal).attested == {}


def test_what_was_prepared_is_shown_and_not_built_again(
    log: Log, fleet_url: str, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = follow("a", prepares=True)

    def is_said_to_be_ready() -> bool:
        return any(row.standing.state == "ready" for row in log.history.store.replicas.all())

    until(is_said_to_be_ready, "the replica has not said that it is ready")
    built: list[int] = []

    def count(seqs: Iterable[int]) -> None:
        if threading.current_thread().name.startswith("ledger-"):
            built.extend(seqs)

    def prepared(base: Any, moves: Any, *rest: Any) -> Any:
        moves = list(moves)
        count(move.event.seq for move in moves)
        return replay(base, moves, *rest)

    def followed(*of: Any) -> Any:
        found = straight_on(*of)
        if found is not None and found[1] is not None:
            count([found[0].seq])
        return found

    monkeypatch.setattr(projector, "replay", prepared)
    monkeypatch.setattr(projector, "straight_on", followed)
    with Ledger.open(fleet_url) as ledger:
        writer = gated(ledger, "all")
        event = apply(writer, 1.0)
        until_shown(follower, event.seq)
        assert built == [event.seq]
        # Of what does not become an event it lets go at the deadline.
        judged = preparing._judged

        def refused(*of: Any) -> Any:
            done, problem = judged(*of)
            return done, problem or ("somebody else could not" if done else None)

        monkeypatch.setattr(preparing, "_judged", refused)
        assert apply(gated(ledger, "all", timeout_s=2.0), 2.0).kind == "update_rejected"
        until(lambda: follower.log.projector._rehearsed is None)  # type: ignore[attr-defined]
        # What nobody proposed is built when it is there.
        other = apply(ledger.model(MODEL), 3.0)
        until_shown(follower, other.seq)
        assert built[-1] == other.seq
        assert follower.log.verify_live()[1].value == other.state_after


def test_the_settings_of_a_server_are_its_policy(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, prepare="canary", prepare_percent=25, prepare_timeout_s=3.0
    )
    assert preparing_of(settings.update_config()) == Preparing("canary", 25, 3.0)
    assert preparing_of(Settings(data_dir=tmp_path).update_config()) is None
    manager = DynamicModelManager(
        torch.nn.Linear(1, 1),
        "m",
        config=DynamicUpdateConfig(backup_dir=tmp_path / "data", prepare="all"),
    )
    try:
        assert manager.log.policy.prepare == Preparing("all")
    finally:
        manager.close()


def test_out_of_range_is_said() -> None:
    for wrong, word in (
        ({"of": "some"}, "none, canary or all"),
        ({"of": "all", "percent": 0}, "from 1 to 100"),
        ({"of": "all", "timeout_s": 0.0}, "above 0"),
    ):
        with pytest.raises(InvalidRequest, match=word):
            Preparing(**wrong)  # type: ignore[arg-type]
