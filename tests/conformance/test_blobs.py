"""What every blob store promises, on every database."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ledger.blobs.sql import PART_BYTES, SqlBlobs
from ledger.digest import content_digest
from ledger.errors import CorruptLedger
from ledger.store import SeqTaken
from ledger.store.sql import SqlStore

Plain = Callable[[str], Any]


@pytest.fixture
def blobs(store: SqlStore) -> SqlBlobs:
    return store.blobs


def stored(blobs: SqlBlobs, data: Any) -> bytes:
    digest = content_digest(data)
    blobs.put(digest, data)
    return digest


def test_a_blob_of_any_size_reads_back(blobs: SqlBlobs) -> None:
    for size in (0, 1, 100_000, PART_BYTES, 2 * PART_BYTES + 7):
        data = np.random.default_rng(size).bytes(size)
        digest = stored(blobs, data)
        assert blobs.get(digest) == data
        out = np.full(size, 7, np.uint8)
        blobs.read_into(digest, out)
        assert out.tobytes() == data


def test_every_kind_of_buffer_is_taken(blobs: SqlBlobs) -> None:
    for data in (
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"memoryview")[2:],
        np.arange(1000, dtype=np.uint8),
        np.arange(1000, dtype=np.float32).view(np.uint8).reshape(40, 100),
        np.frombuffer(b"read only", np.uint8),
        np.empty(0, np.uint8),
    ):
        assert blobs.get(stored(blobs, data)) == memoryview(data).tobytes()


def test_missing_tells_what_is_not_stored(blobs: SqlBlobs) -> None:
    here = [stored(blobs, b"%d" % number) for number in range(700)]
    absent = {content_digest(b"absent"), content_digest(b"too")}
    assert blobs.missing([*here, *absent, *here]) == absent
    assert blobs.missing([]) == set()


def test_putting_again_touches_and_writes_nothing_else(
    blobs: SqlBlobs, database_url: str, plain: Plain
) -> None:
    connection = plain(database_url)

    def touched_at(digest: bytes) -> int:
        rows = connection.execute("SELECT digest, touched_at FROM blobs").fetchall()
        return int(dict(rows)[digest])

    digest, other = stored(blobs, b"again"), stored(blobs, b"not again")
    connection.execute("UPDATE blobs SET touched_at = 5")
    connection.execute("UPDATE blob_parts SET part = 3")  # a second writing would add part 0
    blobs.put(digest, b"again")
    assert touched_at(digest) > 5 and touched_at(other) == 5
    blobs.missing([other])
    assert touched_at(other) > 5
    assert connection.execute("SELECT part FROM blob_parts").fetchall() == [(3,), (3,)]


def test_a_missing_blob_is_named(blobs: SqlBlobs) -> None:
    digest = content_digest(b"never stored")
    with pytest.raises(CorruptLedger, match=digest.hex()):
        blobs.get(digest)
    with pytest.raises(CorruptLedger, match=digest.hex()):
        blobs.read_into(digest, np.empty(3, np.uint8))


def test_a_damaged_blob_is_not_given_out(blobs: SqlBlobs, database_url: str, plain: Plain) -> None:
    quoted = "X'{}'" if database_url.startswith("sqlite") else "'\\x{}'"
    for number, damage in enumerate(
        (
            f"UPDATE blob_parts SET data = {quoted.format(b'dbta'.hex())}",
            f"UPDATE blob_parts SET data = {quoted.format(b'data1data1'.hex())}",
            "UPDATE blobs SET size = 4",
            "UPDATE blobs SET size = 6",
            "UPDATE blobs SET size = 40000000",
            "DELETE FROM blob_parts",
        )
    ):
        digest = stored(blobs, b"data%d" % number)
        where = f" WHERE digest = {quoted.format(digest.hex())}"
        plain(database_url).execute(damage + where)
        with pytest.raises(CorruptLedger, match=digest.hex()):
            blobs.get(digest)
        with pytest.raises(CorruptLedger, match=digest.hex()):
            blobs.read_into(digest, np.empty(5, np.uint8))


def test_a_buffer_of_another_length_is_refused(blobs: SqlBlobs) -> None:
    digest = stored(blobs, b"data")
    for size in (0, 3, 5):
        with pytest.raises(CorruptLedger, match="4 bytes"):
            blobs.read_into(digest, np.empty(size, np.uint8))


def test_many_writers_may_store_the_same_blobs(blobs: SqlBlobs) -> None:
    contents = [b"%d" % number * 1000 for number in range(20)]
    failures: list[BaseException] = []

    def put(order: int) -> None:
        try:
            for data in contents[::order]:
                stored(blobs, data)
                blobs.missing(content_digest(item) for item in contents[::order])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=put, args=(order,)) for order in (1, -1, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [blobs.get(content_digest(data)) for data in contents] == contents


def test_an_events_blobs_are_stored_with_it_or_not_at_all(writer: Any) -> None:
    lost = writer.item(payload=b"lost", as_blob=True)
    event = writer.append(payload=b"won" * 1000, as_blob=True)
    with pytest.raises(SeqTaken):
        writer.store.append(lost)
    assert writer.store.payload(event) == b"won" * 1000
    assert writer.store.blobs.missing(lost.blobs) == set(lost.blobs)
