"""What every event store promises, on every database."""

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from psycopg import errors as postgres_errors

from weightledger.ledger.errors import (
    Conflict,
    CorruptLedger,
    InvalidRequest,
    KeyTaken,
    NotFound,
    SeqTaken,
    StorageBusy,
    StorageError,
    StorageFull,
)
from weightledger.ledger.events import (
    INLINE_BYTES,
    KINDS,
    PINS,
    ROLLED_BACK,
    STATE_CHANGING,
    UPDATE_REJECTED,
    UPDATED,
    UPDATES,
    VERSION_CREATED,
    VERSION_PINNED,
    VERSION_RETIRED,
    VERSION_UNPINNED,
    VERSIONS,
    Annotation,
    Event,
)
from weightledger.ledger.sql import postgres, sqlite
from weightledger.ledger.sql.sqlite_driver import driver as sqlite3
from weightledger.ledger.store import EventFilter, Listed, Snapshot, search
from weightledger.ledger.store.sql_store import SqlStore
from weightledger.ledger.tensors.digest import content_digest

Plain = Callable[[str], Any]

NOTE = Annotation(actor="ana", reason="because 🙂", metadata='{"k":1}')


def one_of_each(writer: Any) -> list[Event]:
    """A log with an event of every kind, the first included."""
    update = writer.append(
        payload=b"p" * 1000,
        annotation=NOTE,
        body={"tensors": [], "rate": 0.5},
        request_id="req_1",
        idempotency_key="key 1",
        request_digest=bytes(32),
    )
    return [
        writer.events.event(0),
        update,
        writer.append(UPDATE_REJECTED),
        writer.append(VERSION_CREATED, active=-2),
        writer.append(payload=b"q" * (INLINE_BYTES + 1), as_blob=True),
        writer.append(ROLLED_BACK, state_after=update.state_after, target_node=update.seq),
        writer.append(VERSION_RETIRED, number=0),
    ]


# Writing and reading


def test_every_field_of_every_kind_reads_back(writer: Any) -> None:
    written = one_of_each(writer)
    store = writer.events
    assert list(store.scan()) == written
    assert [store.event(event.seq) for event in written] == written
    assert store.head() == written[-1]
    assert store.annotation(1) == NOTE
    assert store.annotation(2) is None
    assert store.payload(written[1]) == b"p" * 1000
    assert store.payload(written[4]) == b"q" * (INLINE_BYTES + 1)
    assert store.payload(written[2]) == b""
    assert store.payloads(written[4:0:-1]) == [store.payload(one) for one in written[4:0:-1]]
    assert store.payloads([]) == []
    assert store.by_key("key 1") == written[1]
    assert store.by_key("key") is None
    assert store.by_number(UPDATES, 2) == written[2]
    assert store.by_number(VERSIONS, 0) == written[3]
    assert store.by_number(UPDATES, 10**30) is None
    assert store.listed_versions() == []
    assert store.by_state(written[4].state_after) == written[4]
    assert store.by_state(bytes(32)) is None
    digests = {one.state_after for one in written if one.kind in STATE_CHANGING}
    every = store.states_between(bytes(32), b"\xff" * 32, 100)
    assert [one.state_after for one in every] == sorted(digests)
    assert store.states_between(bytes(32), b"\xff" * 32, 1) == every[:1]
    assert store.states_between(every[0].state_after, every[0].state_after, 9) == every[:1]
    assert store.states_between(b"\xff" * 32, bytes(32), 9) == []


def test_positions_that_do_not_exist_are_none_and_never_another_models_events(
    writer: Any, new_writer: Any
) -> None:
    other = new_writer(writer.store, "other")
    other.append()
    for events in (writer.events, other.events):
        for seq in (-1, 1, 1 << 40, -(1 << 40), 10**30):
            assert events.event(seq) is None
        assert [event.seq for event in events.scan(-5, 10**30)] == [0]
        assert [step.seq for step in events.state_changes(-5, 10**30)] == [0]


def test_a_model_that_is_not_registered_is_not_found(writer: Any) -> None:
    with pytest.raises(NotFound, match="'n' not found; registered: m"):
        writer.store.model("n")


def test_another_models_event_is_not_appended(writer: Any, new_writer: Any) -> None:
    other = new_writer(writer.store, "other")
    other.append()
    with pytest.raises(InvalidRequest, match="'other' is not appended to 'm'"):
        writer.events.append(other.item())
    assert (writer.events.head().seq, other.events.head().seq) == (0, 0)


def test_models_are_listed_in_order_of_registration(store: SqlStore, new_writer: Any) -> None:
    for name in ("zebra", "ant", "Ünïcode/模型"):
        new_writer(store, name).append()
    assert store.models() == ["zebra", "ant", "Ünïcode/模型"]


def test_state_changes_are_found_going_back(writer: Any) -> None:
    events = one_of_each(writer)
    changes = [event for event in events if event.state_seq == event.seq]
    store = writer.events
    for seq in range(len(events)):
        before = [event for event in changes if event.seq <= seq][::-1]
        for back in range(len(changes) + 1):
            expected = before[back] if back < len(before) else None
            assert store.state_change_before(seq, back) == expected
    assert [tuple(step) for step in store.state_changes(1, 6)] == [
        (event.seq, event.kind, event.node, event.parent, event.payload_size, 0)
        for event in changes
        if 1 <= event.seq < 6
    ]


def test_a_time_finds_the_last_event_recorded_until_then(writer: Any) -> None:
    first = writer.last.recorded_at
    for later in (5, 5, 5, 9, 20):
        writer.append(now=first + later)
    expected = {-1: None, 0: 0, 4: 0, 5: 3, 8: 3, 9: 4, 19: 4, 20: 5, 10**20: 5}
    for offset, seq in expected.items():
        event = writer.events.at_time(first + offset)
        assert (event and event.seq) == seq


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


def test_versions_are_listed_until_they_are_retired(writer: Any, new_writer: Any) -> None:
    seqs = [writer.append(VERSION_CREATED).seq for _ in range(4)]
    other = new_writer(writer.store, "other")
    other.append()
    other.append(VERSION_CREATED)
    for number in (2, 0):
        writer.append(VERSION_RETIRED, number=number)
    assert writer.events.listed_versions() == [
        Listed(1, seqs[1], 0, False),
        Listed(3, seqs[3], 0, False),
    ]
    assert other.events.listed_versions() == [Listed(0, 1, 0, False)]
    assert writer.events.listed_version(3) == Listed(3, seqs[3], 0, False)
    assert writer.events.listed_version(2) is None


def test_versions_are_found_by_the_state_they_name(writer: Any) -> None:
    store = writer.events
    assert store.listed_before(9) is None
    for _ in range(2):
        writer.append()
        for _ in range(2):
            writer.append(VERSION_CREATED)
    named = {version.number: version.node for version in store.listed_versions()}
    assert named == {0: 1, 1: 1, 2: 4, 3: 4}
    found = [store.listed_before(node) for node in range(6)]
    assert [one and one.number for one in found] == [None, 1, 1, 1, 3, 3]


def test_the_list_says_what_is_pinned(writer: Any) -> None:
    store = writer.events
    for _ in range(2):
        writer.append(VERSION_CREATED)
    assert store.last_number(PINS) is None
    kinds = (VERSION_PINNED, VERSION_UNPINNED, VERSION_PINNED)
    for at, (kind, number) in enumerate(zip(kinds, (0, 0, 1), strict=True)):
        writer.append(kind, number=at, body={"version_id": f"v{number}", "number": number})
        assert store.last_number(PINS) == at
    assert [version.pinned for version in store.listed_versions()] == [False, True]


def test_anchors_near_a_node_are_found_among_many(writer: Any, new_writer: Any) -> None:
    store = writer.events
    other = new_writer(writer.store, "other")
    other.append()
    for node in range(0, 100, 10):
        store.add_snapshot(Snapshot(node, bytes(32), node))
        other.events.add_snapshot(Snapshot(node + 5, bytes(32), node))
    for node, most, expected in (
        (45, 2, [30, 40, 50, 60]),
        (40, 1, [40, 50]),
        (200, 2, [80, 90]),
        (0, 9, list(range(0, 100, 10))),
    ):
        found = store.snapshots_near(node, most)
        assert [snapshot.node for snapshot in found] == expected


def test_annotations_are_read_together(writer: Any) -> None:
    notes = {writer.append(annotation=Annotation(actor=f"{n}")).seq: f"{n}" for n in range(3)}
    writer.append()
    found = writer.events.annotations(range(600))
    assert {seq: note.actor for seq, note in found.items()} == notes


def test_snapshots_are_listed_by_node_and_may_be_added_again(writer: Any) -> None:
    store = writer.events
    writer.append()
    item = replace(writer.item(), snapshot=Snapshot(2, b"two", 20))
    store.append(item)
    store.add_snapshot(Snapshot(1, b"one", 10))
    store.add_snapshot(Snapshot(1, b"one", 10))
    assert store.snapshots() == [Snapshot(1, b"one", 10), Snapshot(2, b"two", 20)]


def test_an_inline_payload_of_the_wrong_size_is_refused(writer: Any) -> None:
    item = writer.item(payload=b"four")
    with pytest.raises(InvalidRequest, match="inline"):
        writer.add(replace(item, payload=b"fours"))
    with pytest.raises(InvalidRequest, match="inline"):
        writer.add(writer.item(payload=bytes(INLINE_BYTES + 1)))


# Order and races


def test_a_seq_is_taken_once_and_never_skipped(writer: Any) -> None:
    first = writer.item()
    writer.append()
    with pytest.raises(SeqTaken):
        writer.add(first)
    skipping = writer.item()
    writer.last = skipping.event
    with pytest.raises(SeqTaken):
        writer.add(writer.item())
    assert writer.events.head().seq == 1


def test_a_model_without_its_first_event_takes_no_other(store: SqlStore, new_writer: Any) -> None:
    lost = new_writer(store)
    lost.last = lost.item().event
    with pytest.raises(InvalidRequest, match="by its event 0, got event 1"):
        store.register(lost.item())
    with pytest.raises(NotFound):
        store.model("m")
    assert store.models() == []


def test_of_two_threads_racing_for_a_seq_one_wins(writer: Any) -> None:
    results: list[str] = []

    def race(item: Any) -> None:
        barrier.wait()
        try:
            writer.add(item)
            results.append("won")
        except SeqTaken:
            results.append("lost")

    for _ in range(10):
        barrier = threading.Barrier(2)
        items = [writer.item(body={"writer": number}) for number in range(2)]
        threads = [threading.Thread(target=race, args=(item,)) for item in items]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.last = writer.events.head()
    assert sorted(results) == ["lost"] * 10 + ["won"] * 10
    assert writer.last.seq == 10


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
        writer.last = items[-1].event
    counter = processes.context.Value("i", 0)
    names = {"url": database_url, "items": items, "counter": counter}
    assert processes.race(RACE_SEQS, names) == [0, 0]
    assert counter.value == 10
    assert writer.events.head() == items[-1].event


def test_eight_threads_leave_no_gap_and_double_nothing(writer: Any, new_writer: Any) -> None:
    def write(number: int) -> None:
        mine = new_writer(writer.store)
        for _ in range(10):
            while True:
                mine.last = writer.events.head()
                try:
                    mine.append(body={"writer": number}, annotation=NOTE)
                    break
                except SeqTaken:
                    pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = list(writer.events.scan())
    assert [event.seq for event in events] == list(range(81))
    assert [event.prev for event in events[1:]] == [event.hash for event in events[:-1]]
    numbers = [event.body["writer"] for event in events[1:]]
    assert [numbers.count(number) for number in range(8)] == [10] * 8
    assert set(writer.events.update_counts().values()) == {80}


def test_an_idempotency_key_is_used_once_per_model(writer: Any, new_writer: Any) -> None:
    writer.append(idempotency_key="k")
    with pytest.raises(KeyTaken):
        writer.append(idempotency_key="k", annotation=NOTE)
    other = new_writer(writer.store, "other")
    other.append()
    other.append(idempotency_key="k")
    writer.append()
    assert [event.idempotency_key for event in writer.events.scan()] == [
        None,
        "k",
        None,
    ]


def test_a_number_of_a_series_is_used_once(writer: Any) -> None:
    writer.append(VERSION_RETIRED, number=3)
    with pytest.raises(Conflict):
        writer.append(VERSION_RETIRED, number=3)


def test_who_registers_second_leaves_nothing(store: SqlStore, new_writer: Any) -> None:
    first, second = new_writer(store), new_writer(store, parameters=("weights/other",))
    first.append(payload=b"first", as_blob=True)
    with pytest.raises(SeqTaken):
        second.append(payload=b"second", as_blob=True)
    assert store.blobs.missing([content_digest(b"first"), content_digest(b"second")]) == {
        content_digest(b"second")
    }
    first.append()
    assert set(first.events.update_counts()) == set(first.parameters)


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
    sqlite_url: str, new_writer: Any
) -> None:
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
from weightledger.ledger.store import Append
from weightledger.ledger.store.sql_store import SqlStore
events, last = SqlStore.open(url).model("m"), head
while True:
    payload = b"%d" % last.seq * 1000
    digest = content_digest(payload)
    note = Annotation(actor="killed")
    draft = Draft(Updated({}, (), None), digest, annotation=note,
                  payload=(BlobRef(digest, len(payload)),))
    last = seal(draft, "m", last, 0)
    events.append(Append(last, note, ("weights/a.weight",), blobs={digest: payload}))
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
    monkeypatch.setattr(sqlite, "_BUSY_S", 0.05)
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


def random_log(writer: Any, chance: random.Random) -> dict[int, tuple[str, ...]]:
    """A log of all kinds; which parameters each update touched."""
    touched: dict[int, tuple[str, ...]] = {}
    for _ in range(120):
        kind = chance.choice([UPDATED] * 4 + [UPDATE_REJECTED, VERSION_CREATED])
        names = tuple(chance.sample(writer.parameters, chance.randint(1, 3)))
        event = writer.append(
            kind,
            parameters=names,
            annotation=Annotation(actor=chance.choice([None, "ana", "bo", "cy"])),
            now=writer.last.recorded_at + chance.choice([0, 0, 1, 5]),
        )
        if kind == UPDATED:
            touched[event.seq] = names
    return touched


def random_filter(chance: random.Random, events: list[Event]) -> EventFilter:
    def maybe(value: Any, otherwise: Any = None) -> Any:
        return value if chance.random() < 0.4 else otherwise

    kinds = [UPDATED, UPDATE_REJECTED, VERSION_CREATED, "registered", "unknown"]
    times = (events[0].recorded_at - 2, events[-1].recorded_at + 2)
    return EventFilter(
        kinds=maybe(chance.sample(kinds, chance.randint(1, 3)), ()),
        actors=maybe(chance.sample(["ana", "bo", "nobody"], chance.randint(1, 2)), ()),
        parameter=maybe(
            chance.choice(["*", "a.*", "*.weight", "[!a]*", "A.*", "rule/*", "a.bia?"])
        ),
        since=maybe(chance.randint(*times)),
        until=maybe(chance.randint(*times)),
        min_seq=maybe(chance.randint(-3, 130)),
        max_seq=maybe(chance.randint(-3, 130)),
    )


def test_filters_find_what_reading_everything_would(writer: Any, new_writer: Any) -> None:
    chance = random.Random(7)
    writer.parameters += ("rule/state", "weights/Ab")
    touched = random_log(writer, chance)
    other = new_writer(writer.store, "other")
    other.append()
    random_log(other, chance)
    store = writer.events
    events = list(store.scan())
    actors = {event.seq: store.annotation(event.seq) for event in events}

    def passes(event: Event, where: EventFilter) -> bool:
        note = actors[event.seq]
        names = [name.removeprefix("weights/") for name in touched.get(event.seq, ())]
        return (
            (not where.kinds or event.kind in where.kinds)
            and (not where.actors or (note is not None and note.actor in where.actors))
            and (where.parameter is None or any(fnmatchcase(n, where.parameter) for n in names))
            and (where.since is None or event.recorded_at >= where.since)
            and (where.until is None or event.recorded_at <= where.until)
            and (where.min_seq is None or event.seq >= where.min_seq)
            and (where.max_seq is None or event.seq <= where.max_seq)
        )

    found_some = 0
    for _ in range(300):
        where, limit = random_filter(chance, events), chance.choice([0, 1, 3, 50, 2**63 - 1])
        for newest_first in (True, False):
            expected = [event for event in events if passes(event, where)]
            if newest_first:
                expected.reverse()
            found = store.select(where, limit=limit, newest_first=newest_first)
            assert found == expected[:limit], where
            found_some += bool(found)
    assert found_some > 100


@pytest.mark.parametrize("crowded", [False, True])
def test_filters_over_many_parameters_find_what_reading_everything_would(
    store: SqlStore, new_writer: Any, crowded: bool
) -> None:
    """Some parameters are in every event, most are in one; crowded, events touch all of them."""
    chance = random.Random(11)
    names = tuple(f"weights/layer.{number}" for number in range(60))
    writer = new_writer(store, parameters=names)
    writer.append()
    expected: dict[str | None, list[int]] = {None: [], "ana": [], "bo": [], "nobody": []}
    for _ in range(150):
        touched = names if crowded and chance.random() < 0.5 else chance.sample(names, 2)
        actor = chance.choices(["ana", "bo", None], [0.6, 0.05, 0.35])[0]
        event = writer.append(parameters=tuple(touched), annotation=Annotation(actor=actor))
        if any(len(name) == len(names[-1]) for name in touched):
            expected[None].append(event.seq)
            if actor:
                expected[actor].append(event.seq)
    for actor, seqs in expected.items():
        for limit in (1, 3, 20, 2**63 - 1):
            for low, high in ((None, None), (40, 90)):
                where = EventFilter(
                    parameter="layer.??",
                    actors=(actor,) if actor else (),
                    min_seq=low,
                    max_seq=high,
                )
                within = [seq for seq in seqs if (low or 0) <= seq <= (high or 200)]
                for newest_first in (True, False):
                    found = writer.events.select(where, limit=limit, newest_first=newest_first)
                    wanted = within[::-1] if newest_first else within
                    assert [event.seq for event in found] == wanted[:limit]


def test_a_few_actors_are_looked_up_list_by_list_whatever_kinds_there_are() -> None:
    """A list for each of their kinds; read all at once, rare ones cost a scan of the log."""
    assert 4 * len(KINDS) <= search._FEW


def test_a_glob_over_many_parameters_merges_them_in_order(store: SqlStore, new_writer: Any) -> None:
    names = tuple(f"weights/layer.{number}" for number in range(350))
    writer = new_writer(store, parameters=names)
    writer.append()
    order = random.Random(3).sample(names, 60)
    for name in order:
        writer.append(parameters=(name,))
    for newest_first in (True, False):
        found = writer.events.select(
            EventFilter(parameter="layer.*"),
            limit=20,
            newest_first=newest_first,
        )
        seqs = [event.seq for event in found]
        assert seqs == (list(range(60, 40, -1)) if newest_first else list(range(1, 21)))
