"""Blob stores that fail: nothing is acknowledged that is not stored, nothing changes, serving goes
on; when the fault ends the ledger goes on by itself.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
import pytest
import torch

from tests import patient
from tests.buckets import S3Server, s3_serving
from tests.faults import models
from tests.faults.folders import MODEL
from tests.faults.gate import Gate
from tests.faults.test_storage_full import (
    fill,
    infer,
    large,
    nothing_changes,
    small_file_system,
)
from tests.serving import Server, serving
from tests.waiting import PATIENCE_S
from weightledger import Ledger, TorchEngine
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.blobs.folder import TEMPORARY, FolderBlobs
from weightledger.ledger.blobs.objects import ObjectBlobs
from weightledger.ledger.errors import CorruptLedger, StorageError, StorageFull, StorageUnavailable
from weightledger.ledger.log import Log
from weightledger.ledger.tensors.digest import content_digest

UPDATE = "/v1/models/incremental_update"


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server whose keys may be refused without disturbing other tests."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with s3_serving(log, INITIAL_NO_AUTH_ACTION_COUNT="0") as server:
        accept_keys(server, True)
        server.make_bucket("bucket")
        yield server


def accept_keys(server: S3Server, any_key: bool) -> None:
    count = b"1000000" if any_key else b"0"
    patient.post(f"{server.url}/moto-api/reset-auth", content=count).raise_for_status()


@pytest.fixture
def gate(own_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The way to the server from this test and the processes it starts."""
    for name, value in own_server.environment.items():
        monkeypatch.setenv(name, value)
    with Gate(own_server.port).open() as opened:
        monkeypatch.setenv("AWS_ENDPOINT_URL", opened.url)
        yield opened


@contextlib.contextmanager
def log_in(tmp_path: Path, blob_url: str) -> Iterator[Log]:
    """A log with live weights and one update in it, whose payload is a blob."""
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db", blob_url=blob_url) as ledger:
        log = ledger.model(MODEL, engine=TorchEngine(models.factory()))
        large(log, 7)
        yield log


def ends_well(log: Log) -> None:
    """What failed works again, with no restart; and the log is whole."""
    before = log.live.head.seq
    assert large(log, 1).seq == before + 1
    log.rollback("seq:0")
    assert verify(log.history).problem is None


# Buckets


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("full", StorageFull, "no space is left in s3://bucket/full"),
        ("quota", StorageFull, "no space is left in s3://bucket/quota"),
        ("cut", StorageUnavailable, "s3://bucket/cut does not answer"),
        ("away", StorageUnavailable, "s3://bucket/away does not answer"),
    ],
)
def test_an_update_that_the_bucket_does_not_take_changes_nothing(
    tmp_path: Path, gate: Gate, fault: str, error: type[StorageError], words: str
) -> None:
    with log_in(tmp_path, f"s3://bucket/{fault}") as log:
        before = sorted(log.history.blobs.stored())
        gate.fault = fault
        with nothing_changes(log), pytest.raises(error, match=words) as caught:
            large(log)
        assert len(str(caught.value)) < 300
        gate.fault = None
        assert sorted(log.history.blobs.stored()) == before
        ends_well(log)


def test_refused_credentials_are_told_and_change_nothing(
    tmp_path: Path, gate: Gate, own_server: S3Server
) -> None:
    with log_in(tmp_path, "s3://bucket/refused") as log:
        accept_keys(own_server, False)
        try:
            with nothing_changes(log), pytest.raises(StorageError, match="InvalidAccessKeyId"):
                large(log)
        finally:
            accept_keys(own_server, True)
        ends_well(log)


def test_a_missing_bucket_is_told_and_changes_nothing(
    tmp_path: Path, gate: Gate, own_server: S3Server
) -> None:
    own_server.make_bucket("short-lived")
    with log_in(tmp_path, "s3://short-lived") as log:
        blobs = log.history.blobs
        assert isinstance(blobs, ObjectBlobs)
        kept = {path: obstore.get(blobs._store, path).bytes() for path in paths_in(blobs)}
        obstore.delete(blobs._store, list(kept))
        patient.delete(f"{own_server.url}/short-lived").raise_for_status()
        digest = content_digest(b"x")
        with nothing_changes(log), pytest.raises(StorageError, match="create the bucket"):
            large(log)
        for use in (
            lambda: blobs.get(digest),
            lambda: blobs.missing([digest]),
            lambda: list(blobs.stored()),
            lambda: blobs.delete_unreferenced(digest, 5),
            lambda: blobs.sweep(5),
        ):
            with pytest.raises(StorageError, match="short-lived does not exist"):
                use()
        own_server.make_bucket("short-lived")
        for path, data in kept.items():
            obstore.put(blobs._store, path, bytes(data))
        ends_well(log)


def paths_in(blobs: ObjectBlobs) -> list[str]:
    return [item["path"] for item in obstore.list(blobs._store).collect()]


def test_a_reply_that_is_cut_short_is_no_damage(tmp_path: Path, gate: Gate) -> None:
    with log_in(tmp_path, "s3://bucket/short") as log:
        gate.fault = "short"
        with nothing_changes(log), pytest.raises(StorageUnavailable, match="does not answer"):
            log.rollback("seq:0")
        gate.fault = None
        ends_well(log)


def test_without_the_bucket_what_the_database_holds_is_read(tmp_path: Path, gate: Gate) -> None:
    with log_in(tmp_path, "s3://bucket/reading") as log:
        log.create_version("kept")
    gate.fault = "away"
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db", upgrade=False) as ledger:
        history = ledger.history(MODEL)
        assert [event.seq for event in history.events()] == [3, 2, 1, 0]
        assert len(history.versions()) == 2
        with pytest.raises(StorageUnavailable):
            history.state("head")
        gate.fault = None
        assert history.state("head")


PUT = """
import sys
from weightledger.ledger.blobs.registry import get_opener
from weightledger.ledger.tensors.digest import content_digest
data = bytes(300_000_000)
blobs = get_opener(sys.argv[1]).open(sys.argv[1], create=True)
print("ready", flush=True)
blobs.put(content_digest(data), data)
"""


def test_a_writer_killed_in_an_upload_leaves_nothing_visible(gate: Gate) -> None:
    blobs = ObjectBlobs(obstore.store.from_url("s3://bucket/killed"), "s3://bucket/killed")
    gate.fault = "cut"
    with started(PUT, "s3://bucket/killed") as process:
        assert gate.halfway.wait(PATIENCE_S)
        process.kill()
    gate.fault = None
    assert list(blobs.stored()) == []


@contextlib.contextmanager
def started(source: str, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", source, *args], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_server_outlives_its_bucket_and_recovers(tmp_path: Path, gate: Gate) -> None:
    options = ("--model", MODEL, "--blob-url", "s3://bucket/served")
    sent = {"parameter_name": "0.weight", "update_data": 0.37}
    inputs = {"inputs": [torch.linspace(-1, 1, 400).tolist()]}
    with serving(tmp_path / "data", *options) as server, server.client() as http:
        log = http.get("/v1/models/updates").json()
        outputs = http.post("/invocations", json=inputs).json()
        for fault, code in (("full", "storage_full"), ("away", "storage_unavailable")):
            gate.fault = fault
            reply = http.post(UPDATE, json=sent, headers={"idempotency-key": "the-one"})
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, code), reply.text
            assert reply.headers["retry-after"]
            assert http.get("/v1/models/updates").json() == log
            assert http.post("/invocations", json=inputs).json() == outputs
            assert http.get("/readyz").status_code == 200
        gate.fault = None
        reply = http.post(UPDATE, json=sent, headers={"idempotency-key": "the-one"})
        assert reply.status_code == 200, reply.text
        assert http.post("/invocations", json=inputs).json() != outputs
        server.kill()
    gate.fault = "away"
    assert "does not answer" in Server(tmp_path / "data", "--model", MODEL).refuse_to_start()
    gate.fault = None
    with serving(tmp_path / "data", "--model", MODEL) as server, server.client() as http:
        assert http.post("/v1/models/verify", json={}).status_code == 200
    with Ledger.open(f"sqlite:///{tmp_path}/data/ledger.db", upgrade=False) as ledger:
        assert isinstance(ledger.store.blobs, ObjectBlobs)
        assert verify(ledger.history(MODEL)).problem is None


# Folders


def test_a_full_file_system_changes_nothing(tmp_path: Path) -> None:
    with (
        small_file_system(tmp_path / "small", "12m") as small,
        log_in(tmp_path, str(small / "blobs")) as log,
    ):
        fill(small / "filler")
        with nothing_changes(log), pytest.raises(StorageFull, match="no space is left"):
            large(log)
        assert list((small / "blobs" / TEMPORARY).iterdir()) == []
        (small / "filler").unlink()
        ends_well(log)


def test_a_read_only_folder_is_read_and_not_written(tmp_path: Path) -> None:
    with (
        small_file_system(tmp_path / "small", "12m") as small,
        log_in(tmp_path, str(small / "blobs")) as log,
    ):
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        with nothing_changes(log), pytest.raises(StorageError, match="does not allow this"):
            large(log)
        assert verify(log.history).problem is None
        subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
        ends_well(log)


@pytest.mark.parametrize("delay_ms", [0, 30])
def test_a_writer_killed_while_it_writes_leaves_no_half_blob(tmp_path: Path, delay_ms: int) -> None:
    url, digest = str(tmp_path / "blobs"), content_digest(bytes(300_000_000))
    temporary = tmp_path / "blobs" / TEMPORARY
    with started(PUT, url) as process:
        while not list(temporary.iterdir()):
            assert process.poll() is None
        time.sleep(delay_ms / 1000)  # whatever it is doing by then
        process.kill()
        process.wait()
    blobs = FolderBlobs(tmp_path / "blobs")
    left = list(temporary.iterdir())
    if blobs.missing([digest]):
        assert len(left) == 1
        assert list(blobs.stored()) == []
        assert blobs.sweep(time.time_ns() // 1000 + 1_000_000) == 1
    else:
        assert blobs.get(digest) == bytes(300_000_000)
    blobs.put(digest, bytes(300_000_000))
    assert blobs.get(digest) == bytes(300_000_000)
    assert [item.digest for item in blobs.stored()] == [digest]


# Damage, wherever the blobs are


@pytest.mark.parametrize("where", ["folder", "bucket"])
@pytest.mark.parametrize(
    "spoil",
    [lambda data: data[:-5], lambda data: bytes([data[0] ^ 1]) + data[1:], None],
    ids=["truncated", "flipped", "missing"],
)
def test_a_spoiled_payload_is_found_and_named(
    tmp_path: Path, gate: Gate, where: str, spoil: Callable[[bytes], bytes] | None
) -> None:
    url = str(tmp_path / "blobs") if where == "folder" else f"s3://bucket/{tmp_path.name}"
    with log_in(tmp_path, url) as log:
        ref = log.live.head.payload[0]
        replace_blob(log, ref.digest, spoil)
        report = verify(log.history)
        assert report.bad_seq == log.live.head.seq
        assert ref.digest.hex() in str(report.problem)
        infer(log)
        log.rollback("seq:0")  # by way of the snapshot there
        assert ref.digest.hex() in str(verify(log.history).problem)
        with nothing_changes(log), pytest.raises(CorruptLedger):
            log.rollback("seq:1")


def replace_blob(log: Log, digest: bytes, spoil: Callable[[bytes], bytes] | None) -> None:
    blobs = log.history.blobs
    data = blobs.get(digest)
    if isinstance(blobs, FolderBlobs):
        path = blobs.folder / digest.hex()[:2] / digest.hex()
        path.unlink()
        if spoil is not None:
            path.write_bytes(spoil(data))
    else:
        assert isinstance(blobs, ObjectBlobs)
        (path,) = [path for path in paths_in(blobs) if path.startswith(digest.hex())]
        obstore.delete(blobs._store, path)
        if spoil is not None:
            obstore.put(blobs._store, path, spoil(data))
