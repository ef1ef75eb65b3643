"""What every blob store promises: in each database, in a folder, in a bucket over HTTP."""

import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest

from tests.conformance.homes import (
    BucketHome,
    FolderHome,
    Home,
    moment_after,
    open_home,
    put_new,
)
from tests.installed import install
from tests.waiting import PATIENCE_S
from weightledger.ledger.blobs import BlobStore, Stored, folder, registry
from weightledger.ledger.blobs.buckets import S3
from weightledger.ledger.blobs.folder import TEMPORARY, FolderBlobs
from weightledger.ledger.blobs.location import open_blobs
from weightledger.ledger.blobs.objects import PART_BYTES as REQUEST_BYTES
from weightledger.ledger.blobs.objects import ObjectBlobs
from weightledger.ledger.blobs.registry import BLOB_STORES, get_opener
from weightledger.ledger.blobs.sql import PART_BYTES, SLICED_BYTES, SqlBlobs
from weightledger.ledger.errors import (
    CorruptLedger,
    InvalidRequest,
    PluginError,
    SeqTaken,
    StorageBusy,
    StorageError,
)
from weightledger.ledger.sql import postgres
from weightledger.ledger.sql.postgres import _SLICE_BYTES
from weightledger.ledger.store.sql_store import SqlStore
from weightledger.ledger.tensors.digest import content_digest

Plain = Callable[[str], Any]


# Putting and getting


def test_a_blob_of_any_size_reads_back(home: Home) -> None:
    slices = [SLICED_BYTES + more for more in (0, 1, _SLICE_BYTES, _SLICE_BYTES + 1)]
    for size in (0, 1, 100_000, *slices, REQUEST_BYTES, PART_BYTES, 2 * PART_BYTES + 7):
        data = np.random.default_rng(size).bytes(size)
        digest = put_new(home.blobs, data)
        assert home.blobs.get(digest) == data
        out = np.full(size, 7, np.uint8)
        home.blobs.read_into(digest, out)
        assert out.tobytes() == data


def test_a_range_of_a_blob_reads_back(home: Home) -> None:
    """Over the ends of the pieces that a store cuts it into."""
    size = PART_BYTES + REQUEST_BYTES + 7
    data = np.random.default_rng(1).bytes(size)
    digest = put_new(home.blobs, data)
    ends = (0, 1, REQUEST_BYTES - 1, PART_BYTES, PART_BYTES + 1, size - 1, size)
    for start in ends:
        for stop in ends:
            if start <= stop:
                assert home.blobs.read_range(digest, start, stop) == data[start:stop]
    with pytest.raises(CorruptLedger, match=f"{digest.hex()} ends before byte {size + 1}"):
        home.blobs.read_range(digest, size - 1, size + 1)
    with pytest.raises(CorruptLedger, match="is missing"):
        home.blobs.read_range(content_digest(b"never stored"), 0, 1)


def test_every_kind_of_buffer_is_taken(home: Home) -> None:
    for data in (
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"memoryview")[2:],
        np.arange(1000, dtype=np.uint8),
        np.arange(1000, dtype=np.float32).view(np.uint8).reshape(40, 100),
        np.frombuffer(b"read only", np.uint8),
        np.empty(0, np.uint8),
    ):
        digest = content_digest(data)
        home.blobs.put(digest, data)
        assert home.blobs.get(digest) == memoryview(data).tobytes()


def test_missing_tells_what_is_not_stored(home: Home) -> None:
    here = [put_new(home.blobs, b"%d" % number) for number in range(30)]
    absent = {content_digest(b"absent"), content_digest(b"too")}
    assert home.blobs.missing([*here, *absent, *here]) == absent
    assert home.blobs.missing([]) == set()


def test_missing_takes_more_digests_than_one_statement_does(store: SqlStore) -> None:
    here = [put_new(store.blobs, b"%d" % number) for number in range(700)]
    absent = {content_digest(b"absent")}
    assert store.blobs.missing([*here, *absent]) == absent


def test_another_process_reads_what_was_put(home: Home, processes: Any) -> None:
    digest = put_new(home.blobs, b"from here")
    source = """
from tests.conformance.homes import open_home
blobs = open_home(url, environment)
assert blobs.get(digest) == b"from here"
"""
    process = processes.start(
        source, {"url": home.url, "environment": dict(home.environment), "digest": digest}
    )
    process.join()
    assert process.exitcode == 0


def test_a_missing_blob_is_named(home: Home) -> None:
    never, gone = content_digest(b"never stored"), put_new(home.blobs, b"gone")
    home.remove(gone)
    for digest in (never, gone):
        with pytest.raises(CorruptLedger, match=f"{digest.hex()} is missing"):
            home.blobs.get(digest)
        with pytest.raises(CorruptLedger, match=f"{digest.hex()} is missing"):
            home.blobs.read_into(digest, np.empty(4, np.uint8))


@pytest.mark.parametrize("found", [b"dbta", b"dat", b"data1data1", b""])
def test_a_damaged_blob_is_not_given_out(home: Home, found: bytes) -> None:
    digest = put_new(home.blobs, b"data")
    home.overwrite(digest, found)
    with pytest.raises(CorruptLedger, match=digest.hex()):
        home.blobs.get(digest)
    with pytest.raises(CorruptLedger, match=digest.hex()):
        home.blobs.read_into(digest, np.empty(4, np.uint8))


@pytest.mark.parametrize("damage", [b"other", b""])
def test_a_damaged_blob_is_whole_again_when_it_is_rewritten(home: Home, damage: bytes) -> None:
    digest = put_new(home.blobs, b"whole")
    home.overwrite(digest, damage)
    home.blobs.rewrite(digest, b"whole")
    assert home.blobs.get(digest) == b"whole"
    home.remove(digest)
    home.blobs.rewrite(digest, b"whole")
    assert home.blobs.get(digest) == b"whole"
    assert [item.digest for item in home.blobs.stored()] == [digest]


def test_a_damaged_row_is_not_given_out(store: SqlStore, database_url: str, plain: Plain) -> None:
    quoted = "X'{}'" if database_url.startswith("sqlite") else "'\\x{}'"
    for number, damage in enumerate(
        (
            f"UPDATE blob_parts SET data = {quoted.format(b'data1data1'.hex())}",
            "UPDATE blobs SET size = 4",
            "UPDATE blobs SET size = 6",
            "UPDATE blobs SET size = 40000000",
            "DELETE FROM blob_parts",
        )
    ):
        digest = put_new(store.blobs, b"data%d" % number)
        where = f" WHERE digest = {quoted.format(digest.hex())}"
        plain(database_url).execute(damage + where)
        with pytest.raises(CorruptLedger, match=digest.hex()):
            store.blobs.get(digest)
        with pytest.raises(CorruptLedger, match=digest.hex()):
            store.blobs.read_into(digest, np.empty(5, np.uint8))


def test_a_damaged_row_of_several_slices_is_not_given_out(store: SqlStore) -> None:
    """Nor, where its length is another, to whoever checks what comes of it: it would be given what
    memory had."""
    size = SLICED_BYTES + _SLICE_BYTES + 7
    data = np.random.default_rng(0).bytes(size)
    digest = put_new(store.blobs, data)
    at = size - _SLICE_BYTES
    for found in (
        data[:-1],
        data[:-7],
        data[: -_SLICE_BYTES - 7],
        b"",
        data + b"1",
        data + bytes(_SLICE_BYTES),
        data[:at] + data[at + 1 :],
        data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
        data[_SLICE_BYTES : 2 * _SLICE_BYTES] + data[:_SLICE_BYTES] + data[2 * _SLICE_BYTES :],
    ):
        with store._database.write() as execute:
            execute("UPDATE blob_parts SET data = ? WHERE digest = ?", (found, digest))
        with pytest.raises(CorruptLedger, match=digest.hex()):
            store.blobs.get(digest)
        with pytest.raises(CorruptLedger, match=digest.hex()):
            store.blobs.read_into(digest, np.empty(size, np.uint8))
        if len(found) != size:
            with pytest.raises(CorruptLedger, match=digest.hex()):
                store.blobs.read_into(digest, np.empty(size, np.uint8), check=False)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_slices_belong_where_they_start_in_whatever_order_they_come(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    backwards = postgres.SLICES.replace(
        "generate_series(0,", "(SELECT at FROM generate_series(0,"
    ).replace(") AS s(at)", ") AS g(at) ORDER BY at DESC) AS s(at)")
    assert backwards.count("at") > postgres.SLICES.count("at")
    monkeypatch.setattr(postgres, "SLICES", backwards)
    blobs = SqlBlobs(store._database)
    data = np.random.default_rng(0).bytes(PART_BYTES + 5 * _SLICE_BYTES + 7)
    digest = put_new(blobs, data)
    assert blobs.get(digest) == data
    out = np.empty(len(data), np.uint8)
    blobs.read_into(digest, out, check=False)
    assert out.tobytes() == data


def test_a_buffer_of_another_length_is_refused(home: Home) -> None:
    digest = put_new(home.blobs, b"data")
    for size in (0, 3, 5):
        with pytest.raises(CorruptLedger, match="4 bytes"):
            home.blobs.read_into(digest, np.empty(size, np.uint8))


def test_many_writers_may_store_the_same_blobs(home: Home) -> None:
    contents = [b"%d" % number * 1000 for number in range(6)]
    failures: list[BaseException] = []

    def put(order: int) -> None:
        try:
            for data in contents[::order]:
                put_new(home.blobs, data)
                home.blobs.missing(content_digest(item) for item in contents[::order])
        except BaseException as error:
            failures.append(error)

    run_together(*(lambda order=order: put(order) for order in (1, -1, 1, -1)))
    assert failures == []
    assert [home.blobs.get(content_digest(data)) for data in contents] == contents


def run_together(*work: Callable[[], object]) -> None:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_an_events_blobs_are_stored_with_it_or_not_at_all(writer: Any) -> None:
    lost = writer.item(payload=b"lost", as_blob=True)
    event = writer.append(payload=b"won" * 1000, as_blob=True)
    with pytest.raises(SeqTaken):
        writer.events.append(lost)
    assert writer.events.payload(event) == b"won" * 1000
    _, _, attached = lost
    assert writer.store.blobs.missing(attached.blobs) == set(attached.blobs)


# Touching


def test_putting_again_touches(home: Home) -> None:
    digest, other = put_new(home.blobs, b"again"), put_new(home.blobs, b"other")
    moment = moment_after(home.blobs)
    home.blobs.put(digest, b"again")
    assert touched(home.blobs, digest) >= moment > touched(home.blobs, other)
    assert home.blobs.missing([other]) == set()
    assert touched(home.blobs, other) >= moment


def touched(blobs: BlobStore, digest: bytes) -> int:
    return max(item.touched_at for item in blobs.stored() if item.digest == digest)


def test_putting_again_writes_nothing_to_a_database(
    store: SqlStore, database_url: str, plain: Plain
) -> None:
    connection = plain(database_url)
    put_new(store.blobs, b"again")
    connection.execute("UPDATE blob_parts SET part = 3")  # a second writing would add part 0
    put_new(store.blobs, b"again")
    assert connection.execute("SELECT part FROM blob_parts").fetchall() == [(3,)]


def test_putting_again_writes_nothing_to_a_folder(tmp_path: Path) -> None:
    home = FolderHome(f"file://{tmp_path}/blobs")
    digest = put_new(home.blobs, b"again")
    before = home.path(digest).stat().st_ino
    put_new(home.blobs, b"again")
    assert home.path(digest).stat().st_ino == before


def test_a_file_and_its_name_are_on_disk_before_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = FolderHome(f"file://{tmp_path}/blobs")
    steps: list[str] = []

    def watched(name: str, of: Callable[..., str]) -> None:
        done = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            steps.append(f"{name} {of(args[0])}")
            return done(*args, **options)

        monkeypatch.setattr(os, name, call)

    def opened(descriptor: int) -> str:
        found = os.fstat(descriptor)
        return "folder" if stat.S_ISDIR(found.st_mode) else f"{found.st_size} bytes"

    watched("fsync", opened)
    watched("replace", lambda path: "temporary")
    put_new(home.blobs, b"data")
    assert steps == ["fsync 4 bytes", "replace temporary", "fsync folder"]
    put_new(home.blobs, b"data")  # another process may not have come to the last step
    assert steps[3:] == ["fsync folder"]


def test_putting_what_a_bucket_has_had_for_a_moment_sends_nothing(bucket_url: str) -> None:
    home = BucketHome(bucket_url)
    fresh = ObjectBlobs(home.objects, bucket_url)
    digest = put_new(fresh, b"again")
    put_new(fresh, b"again")
    assert fresh.missing([digest]) == set()
    assert len(home.paths(digest)) == 1
    put_new(home.blobs, b"again")  # to this one it is old
    assert len(home.paths(digest)) == 2


@pytest.mark.parametrize("home", ["folder", "s3"], indirect=True)
@pytest.mark.parametrize("found", [b"dat", b"data1data1"])
def test_a_truncated_file_or_object_is_put_again(home: Home, found: bytes) -> None:
    digest = put_new(home.blobs, b"data")
    home.overwrite(digest, found)
    moment_after(home.blobs)
    put_new(home.blobs, b"data")
    assert home.blobs.get(digest) == b"data"


# Listing and deleting


def test_listing_shows_every_blob_once_with_its_size_and_time(home: Home) -> None:
    expected = {}
    for number in range(60):
        data = b"x" * number
        expected[put_new(home.blobs, data)] = number
        put_new(home.blobs, data)
    listed = list(home.blobs.stored())
    assert {item.digest: item.size for item in listed} == expected
    assert len(listed) == len(expected)
    now = time.time() * 1_000_000
    assert all(now - 120_000_000 < item.touched_at < now + 2_000_000 for item in listed)
    assert isinstance(listed[0], Stored)


def test_listing_a_database_goes_on_after_a_page(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store._database.write() as execute:
        for number in range(2_000):
            digest = content_digest(b"%d" % number)
            execute("INSERT INTO blobs VALUES (?, 0, 5)", (digest,))
    listed = [item.digest for item in store.blobs.stored()]
    assert listed == sorted(content_digest(b"%d" % number) for number in range(2_000))


def test_only_what_is_old_is_deleted(home: Home) -> None:
    old, kept = put_new(home.blobs, b"old"), put_new(home.blobs, b"kept")
    moment = moment_after(home.blobs)
    home.blobs.missing([kept])
    assert home.blobs.delete_unreferenced(old, moment)
    assert not home.blobs.delete_unreferenced(kept, moment)
    assert not home.blobs.delete_unreferenced(old, moment)
    assert not home.blobs.delete_unreferenced(content_digest(b"never"), moment)
    assert home.blobs.missing([old, kept]) == {old}
    assert [item.digest for item in home.blobs.stored()] == [kept]
    assert home.blobs.get(kept) == b"kept"
    assert put_new(home.blobs, b"old") == old
    assert home.blobs.get(old) == b"old"


def test_what_was_touched_since_it_was_listed_is_not_deleted_whatever_the_clocks(
    home: Home,
) -> None:
    digest = put_new(home.blobs, b"orphan")
    (listed,) = home.blobs.stored()
    moment_after(home.blobs)
    assert home.blobs.missing([digest]) == set()
    in_a_day = home.blobs.now() + 86_400_000_000
    assert not home.blobs.delete_unreferenced(digest, in_a_day, last_touched=listed.touched_at)
    (listed,) = home.blobs.stored()
    assert home.blobs.delete_unreferenced(digest, in_a_day, last_touched=listed.touched_at)


def test_what_is_held_stays(home: Home) -> None:
    here, gone = put_new(home.blobs, b"here"), content_digest(b"gone")
    (listed,) = home.blobs.stored()
    moment_after(home.blobs)
    with home.blobs.held([here, gone]) as missing:
        assert missing == {gone}
    in_a_day = home.blobs.now() + 86_400_000_000
    assert not home.blobs.delete_unreferenced(here, in_a_day, last_touched=listed.touched_at)


def test_a_collector_waits_for_a_writer_that_holds_a_folder_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_PATIENCE_S", 0.1)
    blobs = FolderBlobs.create(tmp_path / "blobs")
    digest = put_new(blobs, b"held")
    with blobs.held([digest]), pytest.raises(StorageBusy, match="a writer holds"):
        blobs.delete_unreferenced(digest, 1 << 62)
    assert blobs.delete_unreferenced(digest, 1 << 62)


COLLECT = """
from tests.conformance.homes import open_home
blobs = open_home(url, environment)
for digest in digests:
    barrier.wait()
    blobs.delete_unreferenced(digest, moment)
"""


@pytest.mark.parametrize("how", ["put", "missing"])
def test_a_collector_never_takes_an_orphan_from_a_writer(
    home: Home, processes: Any, how: str
) -> None:
    """Two collecting processes and a writer meet at each of many orphans at the same moment."""
    contents = [b"orphan %d" % number for number in range(40)]
    digests = [put_new(home.blobs, data) for data in contents]
    moment = moment_after(home.blobs)
    barrier = processes.context.Barrier(3, timeout=PATIENCE_S)
    names = {
        "url": home.url,
        "environment": dict(home.environment),
        "digests": digests,
        "moment": moment,
        "barrier": barrier,
    }
    collectors = [processes.start(COLLECT, names) for _ in range(2)]
    for digest, data in zip(digests, contents, strict=True):
        barrier.wait()
        if how == "put" or home.blobs.missing([digest]):
            home.blobs.put(digest, data)
    for process in collectors:
        process.join()
        assert process.exitcode == 0
    assert [home.blobs.get(digest) for digest in digests] == contents
    assert all(touched(home.blobs, digest) >= moment for digest in digests[:3])


def test_what_a_collector_has_decided_to_delete_may_be_put_meanwhile(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment that no condition can guard: between looking at a time and deleting."""
    home = BucketHome(bucket_url)
    writer = open_home(bucket_url)
    digest = put_new(home.blobs, b"orphan")
    moment = moment_after(home.blobs)
    delete = ObjectBlobs._delete

    def delete_late(self: ObjectBlobs, copies: list[Any]) -> None:
        assert writer.missing([digest]) == set()
        delete(self, copies)

    monkeypatch.setattr(ObjectBlobs, "_delete", delete_late)
    assert home.blobs.delete_unreferenced(digest, moment)
    assert writer.get(digest) == b"orphan"


def test_a_copy_that_is_swept_away_while_it_is_read_is_read_elsewhere(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = BucketHome(bucket_url)
    data = b"x" * REQUEST_BYTES + b"and a second part"
    digest = put_new(home.blobs, data)
    receive = ObjectBlobs._range
    reads: list[int] = []

    def sweep_first(self: ObjectBlobs, copy: Any, start: int, end: int) -> Any:
        reads.append(start)
        if len(reads) == 2:
            moment = moment_after(home.blobs)
            put_new(home.blobs, data)
            assert home.blobs.sweep(moment) == 1
        return receive(self, copy, start, end)

    monkeypatch.setattr(ObjectBlobs, "_range", sweep_first)
    assert home.blobs.get(digest) == data
    assert sorted(reads) == [0, 0, REQUEST_BYTES, REQUEST_BYTES]


def test_sweeping_leaves_every_blob(home: Home) -> None:
    contents = [b"%d" % number for number in range(10)]
    digests = [put_new(home.blobs, data) for data in contents]
    moment = moment_after(home.blobs)
    home.blobs.missing(digests[:4])
    home.blobs.sweep(moment)
    home.blobs.sweep(moment)
    assert [home.blobs.get(digest) for digest in digests] == contents


def test_sweeping_a_bucket_deletes_the_copies_that_were_replaced(bucket_url: str) -> None:
    home = BucketHome(bucket_url)
    digests = [put_new(home.blobs, b"%d" % number) for number in range(3)]
    moment = moment_after(home.blobs)
    home.blobs.missing(digests[:2])
    assert [len(home.paths(digest)) for digest in digests] == [2, 2, 1]
    assert home.blobs.sweep(moment) == 2
    assert [len(home.paths(digest)) for digest in digests] == [1, 1, 1]


def test_sweeping_a_folder_deletes_what_dead_writers_left(tmp_path: Path) -> None:
    home = FolderHome(f"file://{tmp_path}/blobs")
    digest = put_new(home.blobs, b"whole")
    left, growing = (tmp_path / "blobs" / TEMPORARY / name for name in ("left", "growing"))
    left.write_bytes(b"half")
    growing.write_bytes(b"half")
    os.utime(left, (5, 5))
    assert home.blobs.sweep(6_000_000) == 1
    assert not left.exists() and growing.exists()
    assert home.blobs.get(digest) == b"whole"


def test_what_is_not_ours_is_left_alone(bucket_url: str, tmp_path: Path) -> None:
    bucket, folder = BucketHome(bucket_url), FolderHome(f"file://{tmp_path}/blobs")
    for path in ("readme", "ab/readme", f"{'ab' * 32}/x/y", f"{'AB' * 31}/x", "zz" * 32 + "/x"):
        obstore.put(bucket.objects, path, b"x")
    (tmp_path / "blobs/ab/readme").write_bytes(b"x")
    (tmp_path / "blobs/ab" / ("zz" * 32)).write_bytes(b"x")
    for home in (bucket, folder):
        digest = put_new(home.blobs, b"ours")
        assert [item.digest for item in home.blobs.stored()] == [digest]
        assert home.blobs.sweep(time.time_ns()) == 0


# Which store a ledger has


def test_a_url_has_one_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given, permanent in {
        "blobs": f"file://{tmp_path}/blobs",
        "./a/../b c": f"file://{tmp_path}/b%20c",
        "file:///x/./y%20z": "file:///x/y%20z",
        "S3://bucket": "s3://bucket",
        "s3://bucket/a//b/": "s3://bucket/a/b",
        "gs://bucket/a": "gs://bucket/a",
        "az://container/a": "az://container/a",
    }.items():
        assert get_opener(given).permanent(given) == permanent
        assert get_opener(permanent).permanent(permanent) == permanent


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/prefix",
        "s3://key@bucket",
        "s3://bucket/prefix?secret=1",
        "s3://bucket/prefix#x",
        "ftp://host/path",
        "s3:///prefix",
        "file://host/path",
        "",
    ],
)
def test_a_url_that_names_no_store_or_holds_a_secret_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SqlStore.open(f"sqlite:///{tmp_path}/ledger.db", blob_url=url)
    assert caught.value.param == "blob_url"
    assert "secret" not in str(caught.value).replace("SECRET", "")


def test_a_ledger_remembers_where_its_blobs_are(
    empty_database_url: str, tmp_path: Path, bucket_url: str
) -> None:
    SqlStore.open(empty_database_url, blob_url=bucket_url).close()
    for options in ({}, {"blob_url": bucket_url + "/"}, {"upgrade": False}):
        opened = SqlStore.open(empty_database_url, **options)
        assert isinstance(opened.blobs, ObjectBlobs) and opened.blobs.url == bucket_url
        opened.close()
    for upgrade in (True, False):
        with pytest.raises(InvalidRequest, match=f"keeps its blobs in {bucket_url}, not in file:"):
            SqlStore.open(empty_database_url, blob_url=str(tmp_path / "other"), upgrade=upgrade)
    assert not (tmp_path / "other").exists()


def test_a_ledger_with_blobs_in_its_database_keeps_them_there(writer: Any, tmp_path: Path) -> None:
    for known in (True, False):
        with writer.store._database.write() as execute:
            if not known:  # as a ledger made by a release that did not remember it
                execute("DELETE FROM blob_location")
        with pytest.raises(InvalidRequest, match="keeps its blobs in the database, not in file:"):
            open_blobs(str(tmp_path / "other"), writer.store._database)


def test_of_two_processes_that_choose_different_stores_one_is_refused(
    database_url: str, tmp_path: Path, processes: Any
) -> None:
    SqlStore.open(database_url).close()
    store = SqlStore.open(database_url)
    with store._database.write() as execute:
        execute("DELETE FROM blob_location")
    store.close()
    source = """
import sys
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.store.sql_store import SqlStore
number = barrier.wait()
try:
    SqlStore.open(url, blob_url=f"{folder}/{number}").close()
except InvalidRequest:
    sys.exit(3)
"""
    assert processes.race(source, {"url": database_url, "folder": str(tmp_path)}) == [0, 3]


def test_a_store_that_cannot_be_used_is_not_remembered(bucket_url: str, tmp_path: Path) -> None:
    sqlite_url = f"sqlite:///{tmp_path}/ledger.db"  # which nobody has opened yet
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("mine")
    for wrong, why in (
        ("s3://no-such-bucket/x", "does not exist"),
        (str(tmp_path / "full"), "mine|other files"),
    ):
        with pytest.raises(StorageError, match=why):
            SqlStore.open(sqlite_url, blob_url=wrong)
    store = SqlStore.open(sqlite_url, blob_url=bucket_url)
    assert isinstance(store.blobs, ObjectBlobs)
    store.close()


def test_a_folder_that_is_not_mounted_is_not_taken_for_an_empty_store(tmp_path: Path) -> None:
    home = FolderHome(f"file://{tmp_path}/blobs")
    digest = put_new(home.blobs, b"data")
    (tmp_path / "blobs").rename(tmp_path / "elsewhere")
    for use in (
        lambda: home.blobs.get(digest),
        lambda: home.blobs.read_into(digest, np.empty(4, np.uint8)),
        lambda: home.blobs.put(digest, b"data"),
        lambda: home.blobs.missing([digest]),
        lambda: list(home.blobs.stored()),
    ):
        with pytest.raises(StorageError, match="not a blob store"):
            use()
    (tmp_path / "elsewhere").rename(tmp_path / "blobs")
    assert home.blobs.get(digest) == b"data"


def test_a_folder_may_be_created_by_several_processes_at_once(
    tmp_path: Path, processes: Any
) -> None:
    source = """
from pathlib import Path
from weightledger.ledger.blobs.folder import FolderBlobs
from weightledger.ledger.tensors.digest import content_digest
barrier.wait()
FolderBlobs.create(Path(folder)).put(content_digest(b"x"), b"x")
"""
    assert processes.race(source, {"folder": str(tmp_path / "new")}, count=3) == [0, 0, 0]
    assert FolderBlobs(tmp_path / "new").get(content_digest(b"x")) == b"x"


@pytest.mark.parametrize("scheme", BLOB_STORES)
def test_what_opens_a_scheme_is_of_that_scheme(scheme: str) -> None:
    assert get_opener(f"{scheme}://bucket/x" if scheme != "file" else "x").scheme == scheme


def test_installed_packages_bring_their_blob_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is imported when a URL of its scheme is met; what is wrong with it is said then."""
    group = registry.ENTRY_POINTS
    entries = {"ours": "stores:OURS", "other": "stores:OURS", "twice": "stores:OURS"}
    source = "class Opener:\n    scheme = 'ours'\nOURS = Opener()\n"
    install(tmp_path, "stores", group, entries, source)
    install(tmp_path, "more", group, {"twice": "more:OURS", "broken": "more:x"}, "1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert get_opener("s3://bucket/x").scheme == "s3"
    with pytest.raises(InvalidRequest, match="az://…, broken://…, other://…, ours://…, twice://…"):
        get_opener("gone://x")
    assert not {"stores", "more"} & set(sys.modules)
    assert get_opener("ours://x").scheme == "ours"
    with pytest.raises(PluginError, match="two packages: more and stores"):
        get_opener("twice://x")
    with pytest.raises(PluginError, match=r"'broken' .* package more .*ZeroDivisionError"):
        get_opener("broken://x")
    with pytest.raises(PluginError, match="'other' opens 'ours'"):
        get_opener("other://x")


def test_a_bucket_on_this_machine_is_reached_without_a_proxy(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    store = S3.open(bucket_url, create=True)
    store.put(content_digest(b"here"), b"here")
    assert bytes(store.get(content_digest(b"here"))) == b"here"
