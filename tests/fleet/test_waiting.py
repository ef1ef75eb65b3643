"""Waiting for the next event of a log, whoever writes it, and however one is woken up."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import torch

from tests.waiting import until
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.sql import wakeups
from weightledger.ledger.sql.wakeups import Ending, Wake, Wakeups
from weightledger.ledger.store.waiting import _COUNT

FOREVER_S = 300.0


@pytest.fixture
def logs(database_url: str) -> Iterator[tuple[Log, Log]]:
    """One log, opened twice: a writer and somebody who waits."""
    with Ledger.open(database_url) as ledger, Ledger.open(database_url) as other:
        yield ledger.model("m", base={"w": torch.zeros(4)}), other.model("m")


def update(log: Log) -> int:
    return log.apply(IncrementalUpdateRequest("w", 1.0)).seq


def test_a_commit_wakes_who_waits_in_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits looks by itself as well, which is put off here."""
    monkeypatch.setattr(wakeups, "POLL_S", FOREVER_S)
    here, news = Wakeups(None, None), list[int]()
    seen: list[list[int]] = []

    def wait() -> None:
        seen.append(here.wait(1, lambda: list(news), None, bool, FOREVER_S, "poll"))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    until(lambda: here._waiters, "nobody waits")
    news.append(1)
    here.committed(1)
    until(lambda: seen, "nobody woke up")
    assert seen == [[1]]
    thread.join()


@pytest.mark.parametrize("wake", ["auto", "listen", "poll"])
def test_who_waits_is_woken_by_a_commit_of_another_process(
    logs: tuple[Log, Log], wake: Wake
) -> None:
    writer, waiting = logs
    woken: list[int] = []
    thread = threading.Thread(
        target=lambda: woken.append(waiting.wait(0, FOREVER_S, wake=wake)), daemon=True
    )
    thread.start()
    assert update(writer) == 1
    until(lambda: woken, "nobody woke up")
    assert woken == [1]
    thread.join()


@pytest.mark.parametrize("wake", ["listen", "poll"])
def test_who_waits_goes_on_at_once_when_it_is_to_end(
    logs: tuple[Log, Log], wake: Wake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for the time to look again, nor is what is set before it waits missed."""
    monkeypatch.setattr(wakeups, "POLL_S", FOREVER_S)
    monkeypatch.setattr(wakeups, "_LISTENED_S", FOREVER_S)
    store = logs[1].history.store
    ended, seen = Ending(), list[int]()

    def wait() -> None:
        seen.append(store.wait(0, FOREVER_S, wake, ended))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    until(lambda: ended._waiting, "nobody waits")
    ended.set()
    until(lambda: seen, "nobody went on")
    thread.join()
    wait()
    assert seen == [0, 0]
    assert not ended._waiting


def test_there_is_nothing_to_wait_for_where_the_log_has_gone_on(logs: tuple[Log, Log]) -> None:
    writer, waiting = logs
    for _ in range(3):
        last = update(writer)
    assert waiting.history.store.last_seq() == last == 3
    assert waiting.wait(1, FOREVER_S) == 3
    assert waiting.wait(3, 0.01) == 3  # nothing came in time


def test_who_follows_gets_every_event_once(logs: tuple[Log, Log]) -> None:
    writer, waiting = logs
    update(writer)
    following = waiting.follow(after_seq=0)
    assert next(following).seq == 1
    written = [update(writer) for _ in range(5)]
    assert [next(following).seq for _ in written] == written


def test_an_idle_look_reads_one_index_entry(
    logs: tuple[Log, Log], database_url: str, plain: Any
) -> None:
    writer, _ = logs
    update(writer)
    connection = plain(database_url)
    asked = _COUNT.replace("?", "{}").format(1, 99999999999999)
    if database_url.startswith("sqlite"):
        ((*_, said),) = connection.execute(f"EXPLAIN QUERY PLAN {asked}").fetchall()
        assert said.startswith("SEARCH events USING INTEGER PRIMARY KEY")
        return
    connection.execute("SET enable_seqscan = off")  # of a table with two rows
    rows = connection.execute(f"EXPLAIN {asked}").fetchall()
    plan = "\n".join(line for (line,) in rows)
    assert "Index Only Scan Backward using events_pkey" in plan and "Limit" in plan


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    from tests.conftest import new_database

    with new_database(request, "postgresql", tmp_path) as url:
        yield url


def test_the_notification_is_sent_outside_of_the_append(postgres_url: str, plain: Any) -> None:
    """One in the append's transaction would have every writer of the server queue for a lock."""
    from weightledger.ledger.sql import notifications

    with Ledger.open(postgres_url) as ledger:
        log = ledger.model("m", base={"w": torch.zeros(4)})
        update(log)
        connection: psycopg.Connection[Any] = plain(postgres_url)

        def told() -> list[str]:
            rows = connection.execute(
                "SELECT query FROM pg_stat_activity WHERE datname = current_database()"
                " AND query LIKE '%pg_notify%' AND pid <> pg_backend_pid()"
            ).fetchall()
            return [query for (query,) in rows]

        until(told)
        assert told() == [notifications._TELL.replace("%s", "$1")]


def test_who_listens_stops_at_once(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing a ledger that waited for news took half a second, until it looked whether to end."""
    from weightledger.ledger.sql import notifications

    monkeypatch.setattr(notifications, "_LOOK_UP_S", FOREVER_S)
    monkeypatch.setattr(notifications, "_LAST_WORDS_S", FOREVER_S)
    with Ledger.open(postgres_url) as ledger:
        store = ledger.model("m", base={"w": torch.zeros(4)}).history.store
        store.wait(0, 0.01, wake="listen")
        until(lambda: store._database.wakeups._ear.hears, "nobody listens")
        began_s = time.monotonic()
    assert time.monotonic() - began_s < FOREVER_S


def test_where_notifications_do_not_arrive_one_looks(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As behind a pooler in transaction mode, where LISTEN succeeds and nothing is heard."""
    from weightledger.ledger.sql import notifications

    monkeypatch.setattr(notifications, "_PROBE_S", 0.0)
    monkeypatch.setattr(notifications, "_TELL", "SELECT %s::text")
    with Ledger.open(postgres_url) as ledger, Ledger.open(postgres_url) as other:
        writer = ledger.model("m", base={"w": torch.zeros(4)})
        waiting = other.model("m")
        assert waiting.wait(0, 0.01) == 0  # begins to listen
        until(lambda: "as behind a pooler" in caplog.text)
        update(writer)
        assert waiting.wait(0, FOREVER_S) == 1


def test_a_listener_that_was_cut_off_hears_again(postgres_url: str, plain: Any) -> None:
    with Ledger.open(postgres_url) as ledger, Ledger.open(postgres_url) as other:
        writer, waiting = ledger.model("m", base={"w": torch.zeros(4)}), other.model("m")
        assert waiting.wait(0, 0.01, wake="listen") == 0
        admin = plain(postgres_url)
        listening = (
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND query LIKE 'LISTEN%' AND pid <> pg_backend_pid()"
        )
        (pid,) = until(lambda: admin.execute(listening).fetchone())
        admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
        (again,) = until(lambda: admin.execute(f"{listening} AND pid <> {pid}").fetchone())
        assert again != pid
        update(writer)
        assert waiting.wait(0, FOREVER_S, wake="listen") == 1
