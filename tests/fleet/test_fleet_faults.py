"""Replicas under kill -9, a database that goes, partitions, and logs from elsewhere."""

import contextlib
import logging
import os
import random
import signal
import threading
import time
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
from tests.serving import Server
from tests.waiting import PATIENCE_S, STILL_S, until
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.api.server.digits import load_digits
from weightledger.ledger.fleet import follower as follower_module
from weightledger.ledger.fleet.follower import Follower
from weightledger.ledger.fleet.readiness import Limits, SelfKnowledge, judged
from weightledger.ledger.fleet.served import served
from weightledger.ledger.retention import collect
from weightledger.ledger.store.replica_rows import ReplicaRow

# It acknowledges by one write: killed between a line and its end, two keys would be one line.
WRITER = """
import os, sys
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
                os.write(1, f"{key}\\n".encode())
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


class Asking:
    """A client that asks a replica for inference all the time, and keeps what it was told."""

    def __init__(self, server: Server) -> None:
        self.statuses: list[int] = []
        self.states: set[str] = set()
        self._server, self._ending = server, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        with self._server.client() as http:
            while not self._ending.is_set():
                answer = http.post("/invocations", json={"inputs": [[0.0] * 64]})
                self.statuses.append(answer.status_code)
                self.states.add(answer.headers["x-weights-seq"])
                self._ending.wait(0.01)

    def asked(self, more: int) -> None:
        """Wait until so many more were answered."""
        wanted = len(self.statuses) + more
        until(lambda: len(self.statuses) >= wanted, "nobody answers")


def change(log: Log) -> int:
    return log.apply(IncrementalUpdateRequest("2.bias", 0.25)).seq


@pytest.mark.parametrize("outage_s", [0.0, pytest.param(10.0, marks=pytest.mark.soak)])
def test_a_database_that_is_gone_takes_no_replica_out(
    own: Own, tmp_path: Path, outage_s: float
) -> None:
    """No inference fails before, while and after PostgreSQL is stopped; then it follows again."""
    url = own.create(f"gone_for_{outage_s:.0f}_s")
    module, _ = load_digits(tmp_path / "replica")
    with Ledger.open(url) as ledger:
        seq = change(ledger.model("digits", base=module))
    options = ("--database", url, "--replica", "a")
    server = Server(tmp_path / "replica", *options, verb="follow")
    server.start()
    try:
        with Asking(server) as asking, server.client() as http:
            asking.asked(20)
            began = time.monotonic()
            own.server.stop()
            try:
                until(lambda: http.get("/readyz").json()["stale"], pid=server.process.pid)
                asking.asked(100)
                time.sleep(max(0.0, began + outage_s - time.monotonic()))
                gone = http.get("/readyz")
                assert gone.status_code == 200 and gone.json()["seq"] == seq
                assert "cannot be reached" in gone.json()["reason"]
            finally:
                own.server.start()
            until(lambda: not http.get("/readyz").json()["stale"], pid=server.process.pid)
            asking.asked(20)
            assert asking.states == {str(seq)}
            with Ledger.open(url) as other:
                seq = change(other.model("digits"))
            until(lambda: http.get("/readyz").json()["seq"] == seq, pid=server.process.pid)
            back = http.get("/readyz").json()
            assert (back["state"], back["stale"], back["reason"]) == ("ready", False, None)
        assert set(asking.statuses) == {200}
    finally:
        server.stop()


SKEWED = """
import time
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {skew_s}
time.time_ns = lambda: _time_ns() + {skew_s} * 10**9
"""


def test_clocks_that_are_hours_off_change_nothing(postgres_url: str, tmp_path: Path) -> None:
    """A writer's three hours ahead, a replica's five behind: leases, lag and who served what go by
    the database's clock."""
    writer = Child(SKEWED.format(skew_s=3 * 3600) + WRITER, tmp_path, "writer", postgres_url, "0")
    replica = Child(SKEWED.format(skew_s=-5 * 3600) + REPLICA, tmp_path, "a", postgres_url, "a")
    with contextlib.ExitStack() as ending, Ledger.open(postgres_url) as ledger:
        log = ledger.model(MODEL)
        replicas = log.history.store.replicas

        def clock() -> int:
            with psycopg.connect(postgres_url) as asked:
                (now,) = asked.execute("SELECT extract(epoch FROM now()) * 1000000").fetchone() or (
                    0,
                )
            return int(now)

        def standing() -> ReplicaRow | None:
            return next(iter(replicas.all()), None)

        before = clock()
        for one in (writer, replica):
            one.start()
            ending.callback(one.kill)
        until(
            lambda: (row := standing()) is not None and (row.standing.seq or 0) > 2, pid=replica.pid
        )
        writer.send(signal.SIGSTOP)
        last = log.catch_up()
        assert abs(last.recorded_at - clock() - 3 * 3600 * 10**6) < 3600 * 10**6  # the skew is real

        def shows_it() -> bool:
            row = standing()
            return row is not None and row.standing.seq == last.seq and row.standing.lag_s == 0

        until(shows_it, pid=replica.pid)
        row, now = standing(), clock()
        assert row is not None and row.leased and row.standing.state == "ready"
        assert before <= row.started_at <= row.seen_at <= now
        until(
            lambda: served(log.history, "a", now).known, "its lease is not renewed", pid=replica.pid
        )
        known = served(log.history, "a", now)
        assert known.seq == last.seq
        assert known.since is not None and before <= known.since <= now


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
    with new_database(request, "postgresql", tmp_path) as url:
        make(url)
        yield url


def test_a_partition_makes_one_replica_stale_and_heals(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is ready again with its first look, and not only when it has waited for news.
    monkeypatch.setattr(follower_module, "_LOOK_S", PATIENCE_S)
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
        opened.callback(update, log)  # or they wait for news until then before they end
        opened.callback(monkeypatch.undo)
        proxy.cut()
        seq = update(log)
        until_shown(other, seq)
        until(lambda: cut.readiness().stale)
        assert cut.readiness().ready and cut.readiness().seq == 0
        proxy.heal()
        until_shown(cut, seq)
        proxy.cut()
        until(lambda: cut.readiness().stale)
        proxy.heal()
        healed = time.monotonic()
        until(lambda: not cut.readiness().stale)
        assert time.monotonic() - healed < STILL_S
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
        stands, following = threading.Event(), threading.Event()

        def stand_still() -> None:
            stands.set()
            following.wait()

        with other.follow(MODEL, replica="behind") as behind:
            with monkeypatch.context() as patch:
                patch.setattr(behind, "_follow", stand_still)
                try:
                    assert stands.wait(PATIENCE_S)  # after the look that it is at
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

    # Only what is written: who reads, this process included, knows the schemas that there are.
    monkeypatch.setattr(RolloutChanged, "written_as", RolloutChanged.SCHEMA + 1)
    seq = log.start_rollout("seq:0", 10).seq
    until(lambda: follower.readiness().state == "fenced")
    said = str(follower.readiness().reason)
    assert f"event {seq}" in said and "a newer release wrote it" in said
