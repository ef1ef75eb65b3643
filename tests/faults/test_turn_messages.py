"""Turns on PostgreSQL in two messages: the lock with what is new, the last event with the end.

That is how writers of several machines have them; here each thinks that it is alone on its own.
"""

import logging
from collections.abc import Iterator

import psycopg
import pytest
import torch

from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.events import INLINE_BYTES, Event
from weightledger.ledger.sql import postgres
from weightledger.ledger.sql.advisory_turns import AdvisoryLock
from weightledger.ledger.sql.writing import WritingConnections
from weightledger.ledger.store import news_rows
from weightledger.ledger.store.attached import Append

MODEL = "m"

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def write(log: Log, actor: str = "one") -> Event:
    return log.apply(IncrementalUpdateRequest("w", 1.0, learning_rate=1.0, actor=actor))


@pytest.fixture(autouse=True)
def machines_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "MachineLock", lambda _model_id, everywhere: everywhere)


@pytest.fixture
def log(database_url: str) -> Iterator[Log]:
    with Ledger.open(database_url) as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(16, 16)})
        write(log)
        yield log


@pytest.fixture
def other(database_url: str, log: Log) -> Iterator[Log]:
    """Another process's, as far as the database can tell."""
    with Ledger.open(database_url) as ledger:
        log = ledger.model(MODEL)
        write(log, "other")
        yield log


def lock_of(log: Log) -> AdvisoryLock:
    lock: AdvisoryLock = log.history.store._turnstile._lock
    return lock


def all_is_there(log: Log, updates: int) -> None:
    log.catch_up()
    assert torch.equal(log.state()["w"], torch.full((16, 16), float(updates)))
    assert verify(log.history).problem is None


def no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a write that goes over another connection than the turn's fails."""
    monkeypatch.setattr(WritingConnections, "alone", None)
    monkeypatch.setattr(WritingConnections, "transaction", None)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


def test_what_is_new_comes_with_the_turn(
    log: Log, other: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seq = log.history.store, log.live.head.seq
    for _ in range(3):
        last = write(other, "other").seq
    with store.turn(after=seq) as turn:
        assert turn.head == last
        asked = store.news(seq, 64)
        assert [event.seq for event, _ in asked] == list(range(seq + 1, last + 1))
        with monkeypatch.context() as patched:
            patched.setattr(store._database, "look", None)  # nothing is asked any more
            assert store.news(seq, 64, turn) == asked
            assert store.news(seq + 1, 64, turn) == asked[1:]
        assert store.news(seq - 1, 64, turn)[1:] == asked
    write(log)
    all_is_there(log, 6)


def test_more_than_comes_with_the_turn_is_asked_for(
    log: Log, other: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(news_rows, "_TOLD", 2)
    for count in (1, 2, 3):
        before = write(log).seq
        for _ in range(count):
            write(other, "other")
        with log.history.store.turn(after=before) as turn:
            assert turn.news is not None
            turn.news[2:] = []
            assert len(log.history.store.news(before, 64, turn)) == count
    write(log)
    all_is_there(log, 12)


def test_the_event_goes_over_the_connection_that_has_the_turn(
    log: Log, other: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        no_pool(patched)
        write(log)
    assert not lock_of(log)._held
    lock = lock_of(other)
    assert lock.acquire(0), "the turn ended with the event"
    lock.release(None)
    all_is_there(log, 3)


def test_as_large_an_event_as_stands_in_its_row_goes_that_way_too(
    database_url: str, log: Log, other: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far more than a socket takes at once."""
    generator = torch.Generator().manual_seed(1)
    with Ledger.open(database_url) as ledger, Ledger.open(database_url) as elsewhere:
        mine = ledger.model("large", base={"w": torch.zeros(60_000)})
        theirs = elsewhere.model("large")
        for number, one in enumerate((mine, theirs, mine, theirs), 1):
            values = torch.randn(60_000, generator=generator)
            with monkeypatch.context() as patched:
                if number > 2:  # at first the id of the parameter has to be read
                    no_pool(patched)
                event = one.apply(IncrementalUpdateRequest("w", values, update_type="replace"))
            assert 150_000 < event.payload_size <= INLINE_BYTES
        mine.catch_up()
        assert torch.equal(mine.state()["w"], values)


def test_a_turn_that_goes_on_does_not_end_with_an_event(log: Log, other: Log) -> None:
    with log.history.store.turn() as turn:
        write(log)
        assert turn.held
        assert not lock_of(other).acquire(0)
        write(log)
    all_is_there(other, 4)


def test_who_loses_in_a_turn_works_it_out_again(
    log: Log, other: Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append = log.history.store.append

    def late(*items: Append) -> None:
        monkeypatch.undo()
        turnstile = other.history.store._turnstile  # which goes without turns
        turnstile._stuck, turnstile._stuck_in = True, lock_of(other).under_way()
        write(other, "other")
        append(*items)

    monkeypatch.setattr(log.history.store, "append", late)
    write(log)
    assert not lock_of(log)._held
    write(log)
    assert not warned(caplog), "it had its turn"
    all_is_there(other, 5)


def end_session(url: str, log: Log) -> None:
    connection = lock_of(log).connection
    assert connection is not None
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 10000)", (connection.info.backend_pid,))


def test_a_connection_cut_off_within_a_turn_is_not_written_to(
    database_url: str, log: Log, other: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = log.history.store.append

    def late(*items: Append) -> None:
        end_session(database_url, log)
        append(*items)

    with monkeypatch.context() as patched:
        patched.setattr(log.history.store, "append", late)
        write(log)
    write(other, "other")
    write(log)
    all_is_there(log, 5)


def test_behind_a_pooler_that_forgets_statements_turns_are_had_all_the_same(
    log: Log, other: Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = lock_of(log)._pipeline
    write(log)
    pipeline.ask(("DEALLOCATE ALL", ()))
    pipeline._names |= dict.fromkeys(pipeline._names, b"gone")
    with monkeypatch.context() as patched:
        no_pool(patched)
        write(log)
        write(log)
    assert not pipeline._named
    assert not warned(caplog)
    all_is_there(log, 5)
