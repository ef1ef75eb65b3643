"""What is new in a log is read page after page: all of it, in order, or what is wrong is told."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from tests.conftest import copy_of
from tests.faults.test_derived import Plain, change
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.store import news_rows

MODEL = "m"
UPDATES = 299


def write(url: str) -> None:
    with Ledger.open(url) as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(4)})
        for number in range(UPDATES):
            log.apply(IncrementalUpdateRequest("w", torch.full((4,), number + 1.0)))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with copy_of(request, write, request.param, tmp_path) as url:
        yield url


@pytest.fixture
def log(database_url: str) -> Iterator[Log]:
    with Ledger.open(database_url) as ledger:
        yield ledger.model(MODEL)


def test_the_news_are_the_log_however_many_are_asked_for(log: Log) -> None:
    store = log.history.store
    everything = [(event, store.payload(event) or None) for event in store.scan()]
    assert len(everything) > 256
    for after in (-1, 0, 7, 63, 64, UPDATES - 64, UPDATES - 1, UPDATES, UPDATES + 5):
        for most in (0, 1, 63, 64, 65, 128, 129, 256, 257, 9999):
            assert store.news(after, most) == everything[after + 1 :][:most]


@pytest.mark.parametrize(
    ("first", "last"), [(1, 1), (63, 63), (64, 64), (64, 200), (65, 127), (100, UPDATES - 1)]
)
def test_a_gap_is_told_wherever_it_lies(
    database_url: str, log: Log, plain: Plain, first: int, last: int
) -> None:
    """A page of keys that are all gone is not the end of the log."""
    store = log.history.store
    keys = f"event_key & {(1 << 40) - 1} BETWEEN {first} AND {last}"
    change(
        database_url,
        plain,
        f"DELETE FROM touches WHERE {keys}",
        f"DELETE FROM events WHERE {keys}",
    )
    for most in (UPDATES + 1, 9999):
        with pytest.raises(CorruptLedger, match=f"event {first} is missing"):
            store.news(-1, most)
    assert len(store.news(-1, first)) == first


@pytest.mark.parametrize("seq", [1, 64, 150, UPDATES])
@pytest.mark.parametrize("column", ["header", "event_hash", "payload"])
def test_damage_is_told_and_the_connection_goes_on(
    database_url: str, log: Log, plain: Plain, seq: int, column: str
) -> None:
    store = log.history.store
    other = f"(SELECT {column} FROM events e WHERE e.event_key = events.event_key - 1)"
    if seq == 1 and column == "payload":
        other = f"CAST('x' AS {'blob' if database_url.startswith('sqlite') else 'bytea'})"
    change(
        database_url,
        plain,
        f"UPDATE events SET {column} = {other} WHERE event_key & {(1 << 40) - 1} = {seq}",
    )
    for _ in range(3):
        with pytest.raises(CorruptLedger) as told:
            store.news(-1, 9999)
        assert told.value.seq == seq
        assert len(store.news(-1, seq)) == seq


def test_who_does_not_read_on_leaves_the_connection_as_it_was(log: Log) -> None:
    of = log.history.store._of
    bounds = of.key(0), of.key((1 << 40) - 1)
    for _ in range(3):
        with of.database.look_ahead() as reading:
            with closing(reading.pages(news_rows._NEWS, bounds, 9999)) as pages:
                first, *_ = next(iter(pages))
            assert first[0] == bounds[0]
            (count,) = reading.execute("SELECT count(*) FROM events").fetchone()
            assert count == UPDATES + 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_behind_a_pooler_that_forgets_statements_news_are_read_all_the_same(log: Log) -> None:
    of = log.history.store._of
    asked = news_rows._NEWS, (of.key(0), of.key((1 << 40) - 1)), 9999
    with of.database.look_ahead() as reading:
        everything = list(reading.pages(*asked))
        for _ in range(2):
            reading._connection.pgconn.exec_(b"DEALLOCATE ALL")
            assert list(reading.pages(*asked)) == everything
