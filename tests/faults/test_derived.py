"""What is kept beside the log, altered: verify says so, repair derives it anew, and says so too."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm
from tests.conftest import copy_of
from weightledger import Caller, IncrementalUpdateRequest, Ledger
from weightledger.ledger.audit.repair import repair
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import REPAIRED, Annotation
from weightledger.ledger.events.bodies import Repair, body_of
from weightledger.ledger.log import Log
from weightledger.ledger.store import EventFilter, blocks, columns
from weightledger.ledger.writing.commands import Pin

MODEL = "m"
Plain = Callable[[str], Any]


def add(name: str, value: float = 1.0, **fields: Any) -> IncrementalUpdateRequest:
    return IncrementalUpdateRequest(name, value, learning_rate=1.0, **fields)


BASE = {"w": torch.zeros(3), "v": torch.zeros(2)}


def write(url: str) -> None:
    """A log with versions, pins, actors, keys, a rollback and two full tiles of the hash tree."""
    with Ledger.open(url) as ledger:
        made = ledger.model(MODEL, base=BASE)
        made.create_version("one")
        made.apply(add("w", actor="ana", idempotency_key="first key"))
        made.apply_batch([add("w"), add("v")], caller=Caller(actor="bo"))
        made.execute(Pin(made.create_version("two").name))
        made.record({"w": torch.ones(3), "v": torch.zeros(2)}, reason="a step")
        made.apply(add("v", 0.0))
        made.rollback("seq:2")
        made.apply(add("w", idempotency_key="second key"))
        for number in range(250):
            made.apply(add("v", float(number), actor="ana"))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with copy_of(request, write, request.param, tmp_path) as url:
        yield url


@pytest.fixture
def log(database_url: str) -> Iterator[Log]:
    with Ledger.open(database_url) as ledger:
        yield ledger.model(MODEL, base=BASE)


def change(url: str, plain: Plain, *statements: str) -> None:
    """Change rows behind the ledger's back, its triggers out of the way."""
    connection = plain(url)
    if url.startswith("sqlite"):
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        triggers = connection.execute(query).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        for _, sql in triggers:
            connection.execute(sql)
    else:
        connection.execute("SET session_replication_role = replica")
        for table in ("touches", "parameters", "annotations", "events", "models"):
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        for statement in statements:
            connection.execute(statement)
        query = (
            "SELECT tgname::text, tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal"
        )
        for name, table in connection.execute(query).fetchall():
            connection.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")


DAMAGE = {
    "a row of touches is gone": ("touches", "DELETE FROM touches WHERE number = 2"),
    "another number": ("touches", "UPDATE touches SET number = 7 WHERE number = 2"),
    "another actor": ("touches", "UPDATE touches SET actor = 'eve' WHERE actor = 'ana'"),
    "no actor": ("touches", "UPDATE touches SET actor = NULL WHERE actor = 'bo'"),
    "a touch too many": (
        "touches",
        "INSERT INTO touches SELECT parameter_id, event_key + 5000, 999, NULL FROM touches"
        " WHERE number = 1",
    ),
    "another name": (
        "parameters",
        "UPDATE parameters SET name = 'weights/x' WHERE name = 'weights/w'",
    ),
    "a parameter too many": (
        "parameters",
        "INSERT INTO parameters (model_id, name) VALUES (1, 'x')",
    ),
    "a version is not listed": ("listed_versions", "DELETE FROM listed_versions WHERE number = 0"),
    "not pinned": ("listed_versions", "UPDATE listed_versions SET pinned = 0"),
    "names another state": ("listed_versions", "UPDATE listed_versions SET node = 1"),
    "another event's version": (
        "listed_versions",
        "UPDATE listed_versions SET event_key = event_key + 1 WHERE number = 0",
    ),
    "another kind": ("annotations", "UPDATE annotations SET kind = 'pruned' WHERE actor = 'bo'"),
    "a node of the tree": ("tree_nodes", "DELETE FROM tree_nodes"),
    "another node of the tree": (
        "tree_nodes",
        "UPDATE tree_nodes SET hash = (SELECT max(event_hash) FROM events)",
    ),
}


@pytest.mark.parametrize(("table", "statement"), DAMAGE.values(), ids=DAMAGE)
def test_a_derived_row_that_is_not_what_the_log_says_is_found_and_derived_anew(
    log: Log, database_url: str, plain: Plain, table: str, statement: str
) -> None:
    change(database_url, plain, statement)
    assert not verify(log.history, states=False).ok
    head = log.history.head()
    promised = repair(log.history, dry_run=True)
    assert any(table in line for line in promised.wrong) and promised.event is None
    assert log.history.head() == head and not verify(log.history, states=False).ok
    done = repair(log.history, dry_run=False, note=Annotation(actor="ana"))
    assert done.wrong == promised.wrong
    assert done.event is not None and done.event.kind == REPAIRED
    assert table in body_of(done.event, Repair).rows
    assert verify(log.history).problem is None
    log.catch_up()
    assert log.apply(add("w")).seq == done.event.seq + 1
    assert verify(log.history).problem is None


def test_a_process_that_has_asked_before_sees_what_another_one_put_right(
    log: Log, database_url: str, plain: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 16)
    monkeypatch.setattr(columns, "PAGE", 4)
    asked = EventFilter(text="ana")
    with Ledger.open(database_url) as other:
        history = other.history(MODEL)
        expected = log.history.events(asked, limit=999)
        assert len(expected) == 251
        change(database_url, plain, "DELETE FROM search_blocks WHERE term < 0 OR term > 2")
        assert len(history.events(asked, limit=999)) < 20  # those of the last block
        repair(log.history, dry_run=False)
        assert log.history.events(asked, limit=999) == expected  # its blocks are written again
        assert history.events(asked, limit=999) == expected


def test_nothing_is_recorded_where_nothing_is_wrong(log: Log) -> None:
    head = log.history.head()
    assert repair(log.history, dry_run=False).wrong == []
    assert log.history.head() == head


STRAYS = {
    "touches of no parameter": "INSERT INTO touches VALUES (99, 1, 1, NULL)",
    "an annotation of no event": "INSERT INTO annotations"
    " VALUES (5, 'updated', 'x', NULL, NULL, 'y')",
}


@pytest.mark.parametrize("statement", STRAYS.values(), ids=STRAYS)
def test_rows_that_no_log_accounts_for_are_found(
    log: Log, database_url: str, plain: Plain, statement: str
) -> None:
    change(database_url, plain, statement)
    assert "no event" in str(verify(log.history).problem) or "no parameter" in str(
        verify(log.history).problem
    )


def test_a_snapshot_that_says_another_size_is_found(
    log: Log, database_url: str, plain: Plain
) -> None:
    plain(database_url).execute("UPDATE snapshots SET size = size + 1")
    report = verify(log.history)
    assert (report.bad_seq, "snapshot" in str(report.problem)) == (0, True)


def test_a_damaged_log_is_not_repaired(log: Log, database_url: str, plain: Plain) -> None:
    change(
        database_url, plain, "UPDATE events SET node = 7 WHERE number = 3", DAMAGE["not pinned"][1]
    )
    with pytest.raises(CorruptLedger, match="the log itself is damaged"):
        repair(log.history, dry_run=False)


# Indexes


def flip_in_index(file: Path, index: str, key: bytes, connection: Any) -> None:
    """Flip a bit of a key in an index's only page."""
    (page,) = connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = ?", (index,)
    ).fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    data = bytearray(file.read_bytes())
    at = data.index(key, (page - 1) * size, page * size)
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("index", ["events_idempotency", "events_idempotency_again"])
def test_a_request_is_not_applied_twice_where_an_index_lost_its_key(
    sqlite_url: str, tmp_path: Path, plain: Plain, index: str
) -> None:
    request = add("w", idempotency_key="once and only")
    with Ledger.open(sqlite_url) as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(3)})
        log.apply(add("w", idempotency_key="before"))
        first = log.apply(request)
        log.apply(add("w"))
    connection = plain(sqlite_url)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    flip_in_index(tmp_path / "ledger.db", index, b"once and only", connection)
    connection.close()
    with Ledger.open(sqlite_url) as ledger:
        log = ledger.model(MODEL)
        head = log.history.head()
        with pytest.raises(CorruptLedger, match="do not agree on 'once and only'"):
            log.apply(request)
        assert log.history.head() == head
        assert index in str(verify(log.history).problem)
        done = repair(log.history, dry_run=False)
        assert done.event is not None and verify(log.history).problem is None
        log.catch_up()
        assert log.apply(request) == first


def test_an_index_that_was_dropped_or_changed_is_found_and_made_anew(
    sqlite_url: str, plain: Plain
) -> None:
    with Ledger.open(sqlite_url) as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(3)})
        connection = plain(sqlite_url)
        connection.execute("DROP INDEX events_state")
        connection.execute("DROP INDEX events_kind")
        connection.execute("CREATE INDEX events_kind ON events (kind)")
        problem = str(verify(log.history).problem)
        assert "index events_state is missing" in problem
        assert "index events_kind is changed" in problem
        assert repair(log.history, dry_run=False).event is not None
        assert verify(log.history).problem is None


def test_the_command_says_what_is_wrong_and_puts_it_right(tmp_path: Path, plain: Plain) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    with Ledger.open(url) as ledger:
        ledger.model(MODEL, base={"w": torch.zeros(3)}).apply(add("w", actor="ana"))

    def command(*words: str) -> tuple[int, Any]:
        done = warm.run(*words, "--data-dir", str(tmp_path), "--json")
        return done.returncode, json.loads(done.stdout)

    assert command("repair") == (0, dict(NOTHING_WRONG, dry_run=False))
    change(url, plain, "DELETE FROM touches")
    code, told = command("repair", "--dry-run")
    assert (code, told["recorded_as"]) == (1, None)
    assert "touches" in told["wrong"][0]
    code, told = command("repair", "-m", "after the disk failed")
    assert (code, told["recorded_as"]) == (0, "event_2")
    assert command("repair", "--dry-run") == (0, dict(NOTHING_WRONG, dry_run=True))


NOTHING_WRONG = {"model": MODEL, "wrong": [], "snapshots_rewritten": [], "recorded_as": None}
