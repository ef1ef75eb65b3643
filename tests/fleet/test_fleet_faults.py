"""Replicas under kill -9, a database that goes, partitions, and logs from elsewhere."""

import contextlib
import logging
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import torch

from tests import warm
from tests.conftest import new_database
from tests.faults.test_postgres_faults import Own
from tests.faults.test_postgres_faults import own as own  # its fixture
from tests.fleet.conftest import MODEL, Follow, make, until_shown, update
from tests.fleet.proxies import Proxy
from tests.waiting import until
from weightledger import Ledger, Log
from weightledger.ledger.fleet.follower import Follower
from weightledger.ledger.fleet.readiness import Limits, SelfKnowledge, judged
from weightledger.ledger.retention import collect

WRITER = """
import sys
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.errors import LedgerError
url, first = sys.argv[1], int(sys.argv[2])
number = first
while True:
    try:
        with Ledger.open(url, upgrade=False) as ledger:
            log = ledger.model("m")
            while True:
                key = f"key-{number}"
                log.apply(IncrementalUpdateRequest("bias", 0.5, idempotency_key=key))
                print(key, flush=True)
                number += 1
    except LedgerError:
        pass
"""
REPLICA = """
import sys, time
from weightledger import Ledger
from weightledger.ledger.errors import StorageError
while True:  # begun while the database recovers: begun again, as whoever runs it would
    try:
        with Ledger.open(sys.argv[1], upgrade=False, connections=2) as ledger:
            with ledger.follow("m", replica=sys.argv[2]) as follower:
                while True:
                    time.sleep(60)
    except StorageError:
        time.sleep(0.1)
"""


class Child:
    """A process that can be killed and started again."""

    def __init__(self, program: str, folder: Path, name: str, *args: str) -> None:
        self._program, self._args = program, args
        self._log = folder / f"{name}.log"
        self._process: Any = None

    def start(self, *more: str) -> None:
        with self._log.open("ab") as log:
            self._process = warm.start(
                [*self._args, *more], log=log, env=os.environ, cwd=None, program=self._program
            )

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self._process.wait()

    @property
    def pid(self) -> int:
        pid: int = self._process.pid
        return pid

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()


def answers(url: str) -> bool:
    """Whether PostgreSQL takes connections, which it does not while it recovers."""
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.soak)])
def test_kill_9_of_writer_replicas_and_database_loses_nothing(
    own: Own, tmp_path: Path, kills: int
) -> None:
    """At random moments, each of the three in turn; PostgreSQL recovers from a killed backend."""
    chance = random.Random(17)
    url = own.create(f"killed_{kills}")
    make(url)
    writer = Child(WRITER, tmp_path, "writer", url)
    replicas = {name: Child(REPLICA, tmp_path, name, url, name) for name in ("a", "b")}

    def acknowledged() -> list[str]:
        return [line for line in writer.lines() if line.startswith("key-")]

    with contextlib.ExitStack() as ending:
        writer.start("0")
        ending.callback(lambda: writer.kill())
        for one in replicas.values():
            one.start()
            ending.callback(one.kill)
        for number in range(kills):
            seen = len(acknowledged())
            wanted = seen + chance.randrange(1, 4)
            until(lambda w=wanted: len(acknowledged()) >= w, "no writes", pid=writer.pid)
            victim = chance.choice(["writer", "a", "b", "database"])
            if victim == "writer":
                writer.kill()
                writer.start(str(1_000_000 * (number + 1)))
            elif victim == "database":
                with contextlib.suppress(psycopg.OperationalError), own.admin() as admin:
                    (pid,) = admin.execute("SELECT pg_backend_pid()").fetchone() or (0,)
                    os.kill(pid, signal.SIGKILL)
            else:
                replicas[victim].kill()
                replicas[victim].start()
        wanted = len(acknowledged()) + 1
        until(lambda: len(acknowledged()) >= wanted, "no writes", pid=writer.pid)
        until(lambda: answers(url), "PostgreSQL has not recovered", pid=replicas["a"].pid)
        writer.send(signal.SIGSTOP)
        with Ledger.open(url) as ledger:
            log = ledger.model(MODEL)
            lost = [key for key in acknowledged() if log.history.store.by_key(key) is None]
            assert lost == []
            last, digest = log.live.head.seq, log.live.state.value
            assert log.verify().problem is None

            def all_show_it() -> bool:
                rows = {row.replica: row.standing for row in log.history.store.replicas.all()}
                return all(
                    (rows[name].seq, rows[name].digest, rows[name].state) == (last, digest, "ready")
                    for name in replicas
                )

            until(all_show_it, "replicas do not show the head", pid=replicas["a"].pid)


def test_a_database_that_is_gone_takes_no_replica_out(own: Own) -> None:
    url = own.create("gone_for_a_while")
    make(url)
    with Ledger.open(url) as ledger:
        seq = update(ledger.model(MODEL))
    with Ledger.open(url, upgrade=False) as ledger, ledger.follow(MODEL, replica="a") as follower:
        assert follower.live.head.seq == seq
        own.server.stop()
        try:
            until(lambda: "cannot be reached" in str(follower.readiness().reason))
            said = follower.readiness()
            assert said.ready and said.stale and said.seq == seq
            for _ in range(500):
                with follower.lease() as live:
                    assert live.seq == seq
        finally:
            own.server.start()
        until(lambda: not follower.readiness().stale)
        with Ledger.open(url) as other:
            seq = update(other.model(MODEL))
        until_shown(follower, seq)
        said = follower.readiness()
        assert (said.ready, said.stale, said.reason) == (True, False, None)


def test_limits_take_a_replica_out() -> None:
    fine = SelfKnowledge(True, False, None, None, None, 0.0, 0.0)
    assert judged(fine, Limits()) == ("ready", False, None)

    def after(limits: Limits, **known: Any) -> tuple[str, bool]:
        facts = {name: getattr(fine, name) for name in SelfKnowledge.__slots__}
        return judged(SelfKnowledge(**{**facts, **known}), limits)[:2]

    gone = {"lost": "no route", "unheard_s": 299.0}
    assert after(Limits(), **gone) == ("ready", True)
    assert after(Limits(max_stale_s=298.0), **gone) == ("stale", True)
    assert after(Limits(), unheard_s=11.0) == ("ready", True)  # it hangs, and said nothing
    assert after(Limits(), lag_s=1e6) == ("ready", False)
    assert after(Limits(max_lag_s=5.0), lag_s=5.1) == ("behind", False)
    assert after(Limits(), fault="digest") == ("fenced", False)
    assert after(Limits(), proven=False) == ("starting", False)
    assert after(Limits(), ended=True) == ("stopped", False)


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with new_database(request, "postgresql", tmp_path, template="migrated") as url:
        make(url)
        yield url


def test_a_partition_makes_one_replica_stale_and_heals(postgres_url: str) -> None:
    parsed = sa.make_url(postgres_url)
    with Proxy(parsed) as proxy, contextlib.ExitStack() as opened:
        log = opened.enter_context(Ledger.open(postgres_url)).model(MODEL)
        cut: Follower
        ledgers = [
            opened.enter_context(Ledger.open(url, upgrade=False, connections=2))
            for url in (proxy.url, postgres_url)
        ]
        cut, other = (
            opened.enter_context(ledger.follow(MODEL, replica=name))
            for ledger, name in zip(ledgers, ("cut", "other"), strict=True)
        )
        proxy.cut()
        seq = update(log)
        until_shown(other, seq)
        until(lambda: cut.readiness().stale)
        assert cut.readiness().ready and cut.readiness().seq == 0
        proxy.heal()
        until_shown(cut, seq)
        assert cut.readiness().digest == other.readiness().digest == log.live.state.value.hex()


def test_a_stopped_replica_is_gone_and_comes_back(postgres_url: str, tmp_path: Path) -> None:
    """SIGSTOP: its lease runs out, and it goes on where it was."""
    child = Child(REPLICA, tmp_path, "a", postgres_url, "a")
    with Ledger.open(postgres_url) as ledger:
        log = ledger.model(MODEL)
        replicas = log.history.store.replicas

        def shows(seq: int) -> bool:
            return any(row.standing.seq == seq for row in replicas.all())

        child.start()
        try:
            until(lambda: shows(0), pid=child.pid)
            child.send(signal.SIGSTOP)
            seq = update(log)
            with psycopg.connect(postgres_url, autocommit=True) as clock:  # ten seconds are over
                clock.execute("UPDATE replicas SET lease_until = seen_at")
            assert [row.leased for row in replicas.all()] == [False]
            child.send(signal.SIGCONT)
            until(lambda: shows(seq) and replicas.all()[0].leased, pid=child.pid)
        finally:
            child.kill()


def test_a_replica_behind_what_gc_pruned_jumps_by_snapshot(
    sqlite_url: str, plain: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It stood still, unheard of, while gc dropped what led on from there."""
    caplog.set_level(logging.INFO)
    weights = torch.Generator().manual_seed(0)
    with Ledger.open(sqlite_url) as ledger, Ledger.open(sqlite_url) as other:
        log = ledger.model(MODEL, base={"w": torch.zeros(400, 400)})
        following = threading.Event()
        with other.follow(MODEL, replica="behind") as behind:
            with monkeypatch.context() as patch:
                patch.setattr(behind, "_follow", following.wait)
                try:
                    for _ in range(3):  # payloads that are blobs
                        last = log.record({"w": torch.randn(400, 400, generator=weights)}).seq
                    log.snapshot()
                    with contextlib.closing(plain(sqlite_url)) as clock:
                        clock.execute("UPDATE replicas SET lease_until = 0")
                    later = log.history.blobs.now() + 7_200_000_000
                    report = collect(log.history, dry_run=False, now_us=lambda: later)
                    assert report.pruned > 0
                finally:
                    following.set()
            until_shown(behind, last)
            assert behind.readiness().digest == log.live.state.value.hex()
            assert f"by the snapshot at event {last}" in caplog.text


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_an_event_of_a_newer_release_fences_with_the_reason(
    log: Log, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = follow()
    from weightledger.ledger.events.bodies import RolloutChanged

    monkeypatch.setattr(RolloutChanged, "SCHEMA", 2)
    seq = log.start_rollout("seq:0", 10).seq
    monkeypatch.setattr(RolloutChanged, "SCHEMA", 1)
    until(lambda: follower.readiness().state == "fenced")
    said = str(follower.readiness().reason)
    assert f"event {seq}" in said and "a newer release wrote it" in said
