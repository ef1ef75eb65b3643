"""What the stores over SQL promise beside what every store does, on every database."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg import errors as postgres_errors

from tests.conformance.event_stores import EventStoreSuite
from weightledger.ledger.errors import (
    CorruptLedger,
    InvalidRequest,
    StorageBusy,
    StorageError,
    StorageFull,
)
from weightledger.ledger.events import (
    KINDS,
    UPDATE_REJECTED,
    UPDATES,
    Annotation,
)
from weightledger.ledger.sql import postgres, sqlite_opening
from weightledger.ledger.sql.sqlite_driver import driver as sqlite3
from weightledger.ledger.sql.writing import WritingConnections
from weightledger.ledger.store import EventFilter, search
from weightledger.ledger.store.sql_store import SqlStore

Plain = Callable[[str], Any]


class TestSqlStores(EventStoreSuite):
    """The suite of every store, on every database."""


NOTE = Annotation(actor="ana", reason="because 🙂", metadata='{"k":1}')


# Writing and reading


def test_updates_are_counted_by_parameter(writer: Any) -> None:
    writer.append(parameters=("weights/a.weight",))
    writer.append(parameters=("weights/a.weight", "adapter/x/new"))
    writer.append(UPDATE_REJECTED, parameters=("weights/b.weight",))
    reopened = SqlStore(writer.store._database, writer.store.blobs)
    assert reopened.model("m").update_counts() == {"adapter/x/new": 1, "weights/a.weight": 2}


def test_updates_are_counted_across_stores_and_models(
    writer: Any, new_writer: Any, database_url: str
) -> None:
    other = SqlStore.open(database_url)
    mine, theirs = new_writer(writer.store, "n"), new_writer(other)
    theirs.last = writer.last
    mine.append()
    for count in range(1, 4):
        mine.append(parameters=mine.parameters[:1])
        theirs.append(parameters=theirs.parameters[:1])
        writer.last = theirs.last
        writer.append(parameters=writer.parameters[:2])
        theirs.last = writer.last
        first, second, _ = writer.parameters
        assert other.model("m").update_counts() == {first: 2 * count, second: count}
        assert other.model("n").update_counts() == {first: count}
    other.close()


# Order and races


RACE_SEQS = """
import sys
from weightledger.ledger.errors import SeqTaken
from weightledger.ledger.store.sql_store import SqlStore
store, won = SqlStore.open(url), 0
events = store.model("m")
for item in items:
    barrier.wait()
    try:
        events.append(item)
        won += 1
    except SeqTaken:
        pass
barrier.wait()
store.close()
with counter.get_lock():
    counter.value += won
"""


def test_of_two_processes_racing_for_a_seq_one_wins(
    writer: Any, database_url: str, processes: Any
) -> None:
    items = []
    for _ in range(10):
        items.append(writer.item())
        writer.last, _, _ = items[-1]
    counter = processes.context.Value("i", 0)
    names = {"url": database_url, "items": items, "counter": counter}
    assert processes.race(RACE_SEQS, names) == [0, 0]
    assert counter.value == 10
    assert writer.events.head() == items[-1][0]


# Append-only


CHANGES = {
    "sqlite": [
        "UPDATE {table} SET {column} = {column}",
        "DELETE FROM {table}",
        "INSERT OR REPLACE INTO {table} SELECT * FROM {table}",
        "REPLACE INTO {table} SELECT * FROM {table}",
    ],
    "postgresql": [
        "UPDATE {table} SET {column} = {column}",
        "DELETE FROM {table}",
        "TRUNCATE {table} CASCADE",
        "SET session_replication_role = replica; DELETE FROM {table}",
    ],
}


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("models", "name"),
        ("events", "kind"),
        ("annotations", "reason"),
        ("parameters", "name"),
        ("touches", "event_key"),
    ],
)
def test_no_connection_changes_what_is_recorded(
    writer: Any, database_url: str, plain: Plain, table: str, column: str
) -> None:
    writer.append(annotation=NOTE)
    connection = plain(database_url)
    before = connection.execute(f"SELECT * FROM {table}").fetchall()
    assert before
    for change in CHANGES[database_url.split(":")[0]]:
        with pytest.raises(Exception, match="weightledger: "):
            connection.execute(change.format(table=table, column=column))
        assert connection.execute(f"SELECT * FROM {table}").fetchall() == before


@pytest.mark.parametrize("clause", ["OR REPLACE", "OR IGNORE", "OR ROLLBACK", ""])
def test_no_new_row_displaces_one_by_key_or_number_on_sqlite(
    sqlite_url: str, plain: Plain, new_writer: Any, clause: str
) -> None:
    writer = new_writer(SqlStore.open(sqlite_url))
    writer.append()
    writer.append(idempotency_key="k")
    connection = plain(sqlite_url)
    before = connection.execute("SELECT * FROM events").fetchall()
    row = list(before[1])
    for key, idempotency_key, number in (
        (row[0], "new", 77),  # its place
        (row[0] + 1, "k", 77),  # its idempotency key
        (row[0] + 1, "new", 1),  # its number
        (row[0] + 2, "new", 77),  # no predecessor
    ):
        row[0], row[9], row[8] = key, idempotency_key, number
        with pytest.raises(Exception, match="weightledger: "):
            connection.execute(
                f"INSERT {clause} INTO events VALUES ({', '.join('?' * len(row))})", row
            )
        assert connection.execute("SELECT * FROM events").fetchall() == before
    writer.store.close()


def test_a_gap_is_refused_by_the_database_itself(
    writer: Any, database_url: str, plain: Plain
) -> None:
    with pytest.raises(Exception, match="does not follow"):
        plain(database_url).execute(
            "INSERT INTO events SELECT event_key + 2, model_id, kind, recorded_at, node, parent,"
            " changes_state, forward_only, series, number, idempotency_key, state_after,"
            " payload_size, header, event_hash, payload FROM events"
        )
    assert writer.events.head().seq == 0


# Damage


def without_triggers(connection: Any, database_url: str) -> Any:
    """What someone with the file in hand can do."""
    if database_url.startswith("sqlite"):
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in names.fetchall():
            connection.execute(f"DROP TRIGGER {name}")
    else:
        connection.execute("ALTER TABLE events DISABLE TRIGGER USER")
    return connection


def flip(connection: Any, database_url: str, table: str, column: str, where: str) -> None:
    mark = "?" if database_url.startswith("sqlite") else "%s"
    (value,) = connection.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchone()
    damaged = bytearray(value)
    damaged[len(damaged) // 2] ^= 1
    connection.execute(f"UPDATE {table} SET {column} = {mark} WHERE {where}", (bytes(damaged),))


def test_a_flipped_bit_in_an_event_is_noticed_with_its_seq(
    writer: Any, database_url: str, plain: Plain
) -> None:
    for _ in range(5):
        writer.append()
    connection = without_triggers(plain(database_url), database_url)
    for number, column in ((2, "header"), (4, "event_hash"), (5, "state_after")):
        flip(connection, database_url, "events", column, f"number = {number}")
        with pytest.raises(CorruptLedger) as caught:
            writer.events.event(number)
        assert caught.value.seq == number
    store = writer.events
    reads: list[Callable[[], object]] = [
        lambda: store.event(2),
        lambda: store.by_number(UPDATES, 2),
        lambda: list(store.scan()),
        lambda: store.select(EventFilter(max_seq=2), limit=9),
        lambda: store.state_change_before(3, 1),
    ]
    for read in reads:
        with pytest.raises(CorruptLedger) as caught:
            read()
        assert caught.value.seq == 2
    assert store.event(1) is not None


def test_a_column_that_its_header_contradicts_is_noticed(
    writer: Any, database_url: str, plain: Plain
) -> None:
    changes = [
        "kind = 'update_rejected'",
        "recorded_at = recorded_at + 1",
        "node = 0",
        "parent = NULL",
        "changes_state = 0",
        "series = 'versions'",
        "number = 77",
        "idempotency_key = 'other'",
        "payload_size = 1",
    ]
    for _ in changes:
        writer.append()
    connection = without_triggers(plain(database_url), database_url)
    for seq, change in enumerate(changes, 1):
        connection.execute(f"UPDATE events SET {change} WHERE number = {seq}")
        with pytest.raises(CorruptLedger, match=change.split(" ")[0]) as caught:
            writer.events.event(seq)
        assert caught.value.seq == seq


def test_another_models_event_is_not_passed_off(
    writer: Any, new_writer: Any, database_url: str, plain: Plain
) -> None:
    new_writer(writer.store, "other").append()
    connection = without_triggers(plain(database_url), database_url)
    connection.execute(
        "UPDATE events SET header = (SELECT header FROM events WHERE model_id = 2),"
        " event_hash = (SELECT event_hash FROM events WHERE model_id = 2),"
        " state_after = (SELECT state_after FROM events WHERE model_id = 2)"
        " WHERE model_id = 1"
    )
    with pytest.raises(CorruptLedger, match="names 'other'"):
        writer.events.event(0)


def test_a_missing_event_is_noticed_by_a_scan(writer: Any, database_url: str, plain: Plain) -> None:
    for _ in range(3):
        writer.append()
    connection = without_triggers(plain(database_url), database_url)
    connection.execute("DELETE FROM events WHERE number = 2")
    with pytest.raises(CorruptLedger) as caught:
        list(writer.events.scan())
    assert caught.value.seq == 2


def test_a_flipped_bit_in_a_payload_is_noticed_with_its_seq(
    writer: Any, database_url: str, plain: Plain
) -> None:
    inline = writer.append(payload=b"payload" * 100)
    blob = writer.append(payload=b"other" * 100, as_blob=True)
    connection = without_triggers(plain(database_url), database_url)
    flip(connection, database_url, "events", "payload", "number = 1")
    flip(connection, database_url, "blob_parts", "data", "part = 0")
    for event in (inline, blob):
        with pytest.raises(CorruptLedger) as caught:
            writer.events.payload(event)
        assert caught.value.seq == event.seq


def test_a_lost_payload_is_noticed_with_its_seq(
    writer: Any, database_url: str, plain: Plain
) -> None:
    event = writer.append(payload=b"payload", as_blob=True)
    plain(database_url).execute("DELETE FROM blobs")
    with pytest.raises(CorruptLedger, match="missing") as caught:
        writer.events.payload(event)
    assert caught.value.seq == 1


# Failures


def test_a_full_disk_records_nothing_and_the_store_goes_on(
    sqlite_url: str, new_writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WritingConnections, "keep", lambda self, opened: opened[0].close())
    store = SqlStore.open(sqlite_url)
    writer = new_writer(store)
    writer.append()
    # The limit is a connection's own; one at a time, the pool hands out the same one again.
    with store._database.read() as execute:
        (pages,) = execute("PRAGMA page_count").fetchone()
        execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StorageFull):
        writer.append(payload=bytes(100_000), annotation=NOTE)
    with pytest.raises(StorageFull):
        writer.append(payload=bytes(1_000_000), as_blob=True)
    assert list(writer.events.scan()) == [writer.last]
    assert writer.events.annotation(1) is None
    assert writer.events.update_counts() == {}
    with store._database.read() as execute:
        execute("PRAGMA max_page_count = 1073741823")
    event = writer.append(payload=bytes(100_000), annotation=NOTE)
    assert writer.events.head() == event
    store.close()


KILLED_WRITER = """
from dataclasses import replace
from weightledger.ledger.events import Annotation, Draft, BlobRef, seal
from weightledger.ledger.events.bodies import Updated
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.store.attached import Attached
from weightledger.ledger.store.sql_store import SqlStore
events, last = SqlStore.open(url).model("m"), head
while True:
    payload = b"%d" % last.seq * 1000
    digest = content_digest(payload)
    note = Annotation(actor="killed")
    draft = Draft(Updated({}, (), None), digest, payload=(BlobRef(digest, len(payload)),))
    last = seal(draft, "m", last, 0, annotation=note)
    events.append((last, note, Attached(("weights/a.weight",), blobs={digest: payload})))
    acknowledge.send(last.seq)
"""


def test_a_killed_writer_leaves_whole_events_only(
    writer: Any, database_url: str, processes: Any
) -> None:
    for _ in range(2):
        heard, said = processes.context.Pipe(duplex=False)
        head = writer.events.head()
        process = processes.start(
            KILLED_WRITER, {"url": database_url, "head": head, "acknowledge": said}
        )
        said.close()
        acknowledged = [heard.recv() for _ in range(15)]
        process.kill()
        process.join()
        with heard:
            while heard.poll():
                try:
                    acknowledged.append(heard.recv())
                except EOFError:
                    break
        events = list(writer.events.scan())
        assert acknowledged == list(range(head.seq + 1, head.seq + 1 + len(acknowledged)))
        assert len(acknowledged) <= events[-1].seq - head.seq <= len(acknowledged) + 1
        for event in events[1:]:
            assert len(writer.events.payload(event)) == event.payload_size
            note = writer.events.annotation(event.seq)
            assert note is not None and note.actor == "killed"
        counts = writer.events.update_counts()
        assert counts == {"weights/a.weight": len(events) - 1}


def test_a_locked_database_is_busy(
    sqlite_url: str, plain: Plain, new_writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_opening, "BUSY_S", 0.05)
    store = SqlStore.open(sqlite_url)
    writer = new_writer(store)
    writer.append()
    other = plain(sqlite_url)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageBusy):
        writer.append()
    assert writer.events.head().seq == 0
    other.execute("ROLLBACK")
    writer.append()
    store.close()


def test_a_writer_holds_the_database_from_its_first_read(sqlite_url: str) -> None:
    store = SqlStore.open(sqlite_url)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), timeout=0)
    with (
        store._database.write(),
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        other.execute("BEGIN IMMEDIATE")
    other.close()
    store.close()


def test_a_lost_connection_is_reported_and_the_next_call_works(
    postgres_server: Any, plain: Plain, new_writer: Any
) -> None:
    url = postgres_server.get_uri()
    plain(url).execute("CREATE DATABASE lost")
    store = SqlStore.open(postgres_server.get_uri(database="lost"))
    writer = new_writer(store)
    writer.append()

    def lose() -> None:
        with store._database.write() as execute:
            (pid,) = execute("SELECT pg_backend_pid()").fetchone()
            plain(url).execute("SELECT pg_terminate_backend(%s)", (pid,))
            execute("SELECT 1")

    with pytest.raises(StorageError):
        lose()
    writer.append()
    store.close()
    with pytest.raises(StorageError, match="closed"):
        writer.events.head()
    plain(url).execute("DROP DATABASE lost")


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("postgresql://me:s3cret@127.0.0.1:1/x", StorageError),
        ("sqlite:////no/such/folder/x.db", StorageError),
        ("sqlite://", InvalidRequest),
        ("sqlite:///:memory:", InvalidRequest),
        ("sqlite:///file:x?mode=memory&uri=true", InvalidRequest),
        ("sqlite:///x.db?mode=ro", InvalidRequest),  # it made a file that could be written
        ("mysql://host/x", InvalidRequest),
        ("weights.db", InvalidRequest),
    ],
)
def test_a_database_that_cannot_be_opened_says_why_without_its_password(
    url: str, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        SqlStore.open(url)
    assert "s3cret" not in str(caught.value)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"something else entirely" * 100)
    with pytest.raises(StorageError, match=r"x\.db is not a SQLite database"):
        SqlStore.open(f"sqlite:///{tmp_path}/x.db")


def test_postgresql_failures_become_the_ledgers() -> None:
    for error, kind in (
        (postgres_errors.DiskFull(), StorageFull),
        (postgres_errors.DeadlockDetected(), StorageBusy),
        (postgres_errors.DataCorrupted(), CorruptLedger),
        (postgres_errors.ReadOnlySqlTransaction(), StorageError),
    ):
        assert type(postgres.explain(error, "db")) is kind


# Filters


def test_a_few_actors_are_looked_up_list_by_list_whatever_kinds_there_are() -> None:
    """A list for each of their kinds; read all at once, rare ones cost a scan of the log."""
    assert 4 * len(KINDS) <= search._FEW
