"""Notifications that go to nobody: connections idle for hours are cut off, and nobody comes late.

Whoever listens does not look by himself here, so that what is lost shows.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import torch

from tests.conftest import new_database
from tests.waiting import PATIENCE_S, STILL_S, until
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.sql import wakeups
from weightledger.ledger.sql.notifications import _COALESCED_S, Teller

LISTENING = "LISTEN%"
TELLING = "SELECT pg_notify%"


@pytest.fixture
def url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    monkeypatch.setattr(wakeups, "_LISTENED_S", PATIENCE_S)
    with new_database(request, "postgresql", tmp_path) as url:
        yield url


def update(log: Log) -> int:
    return log.apply(IncrementalUpdateRequest("w", 1.0)).seq


def cut_off(admin: psycopg.Connection[Any], query: str) -> None:
    """End the connection whose last statement was this one, as a restart or a firewall does."""
    asked = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND query LIKE %s AND pid <> pg_backend_pid()"
    )
    (pid,) = until(lambda: admin.execute(asked, (query,)).fetchone())
    ended = admin.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,)).fetchone()
    assert ended == (True,)


def test_what_could_not_be_told_is_told_by_another_connection(url: str, plain: Any) -> None:
    hearing: psycopg.Connection[Any] = psycopg.connect(url, autocommit=True)
    with Ledger.open(url) as ledger, hearing:
        log = ledger.model("m", base={"w": torch.zeros(4)})
        hearing.execute("LISTEN weightledger")

        def heard() -> list[str]:
            return [one.payload for one in hearing.notifies(timeout=STILL_S, stop_after=1)]

        update(log)
        (model_id,) = heard()
        cut_off(plain(url), TELLING)
        update(log)
        assert heard() == [model_id]


def test_what_is_committed_while_it_is_told_is_told_the_next_time(url: str) -> None:
    """A writer that commits all the time tells twenty times a second, not once a commit."""
    commits = rounds = 6

    class Busy(psycopg.Connection[Any]):
        def execute(self, *args: Any, **options: Any) -> psycopg.Cursor[Any]:
            nonlocal commits
            sent = super().execute(*args, **options)
            if commits:
                commits -= 1
                teller.tell(1)
            return sent

    began = time.monotonic()
    teller = Teller(lambda: Busy.connect(url, autocommit=True))
    teller.tell(1)
    until(lambda: not commits)
    took_s = time.monotonic() - began
    teller.close()
    assert took_s > (rounds - 1) * _COALESCED_S


def test_what_came_while_nobody_listened_is_looked_for(url: str, plain: Any) -> None:
    """Between a look and a sleep the listener is cut off, there is an event, and it listens again:
    what was told meanwhile nobody has heard."""
    with Ledger.open(url) as ledger, Ledger.open(url) as other:
        writer, waiting = ledger.model("m", base={"w": torch.zeros(4)}), other.model("m")
        store: Any = waiting.history.store
        heart = store._database.wakeups
        assert waiting.wait(0, 0.01, wake="listen") == 0  # begins to listen
        until(lambda: heart._ear.hears)
        looked = 0

        def look() -> int:
            nonlocal looked
            looked += 1
            seen = int(store.last_seq())
            if looked > 1:
                return seen
            cut_off(plain(url), LISTENING)
            until(lambda: not heart._ear.hears)
            update(writer)
            until(lambda: heart._ear.hears)
            return seen

        def wait() -> None:
            heart.wait(store._of.model_id, look, None, lambda seq: seq > 0, PATIENCE_S, "listen")
            awake.set()

        awake = threading.Event()
        threading.Thread(target=wait, daemon=True).start()
        assert awake.wait(STILL_S)


def test_a_proposal_is_told_to_who_waits_for_one(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(url) as ledger, Ledger.open(url) as other:
        log, waiting = ledger.model("m", base={"w": torch.zeros(4)}), other.model("m")
        store: Any = waiting.history.store
        assert waiting.wait(0, 0.01, wake="listen") == 0  # begins to listen
        until(lambda: store._database.wakeups._ear.hears)
        newest, looked, awake = store.proposals.newest, threading.Event(), threading.Event()

        def look() -> str | None:
            name: str | None = newest()
            looked.set()
            return name

        def wait() -> None:
            store.proposals.wait(None, PATIENCE_S, "listen")
            awake.set()

        monkeypatch.setattr(store.proposals, "newest", look)
        threading.Thread(target=wait, daemon=True).start()
        assert looked.wait(PATIENCE_S) and not awake.is_set()
        log.history.store.proposals.propose(b"{}", None, [], 600.0)
        assert awake.wait(STILL_S)
