"""Backups: of one moment, whole, readable anywhere, restored into either database; blobs moved."""

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.api.test_command import inside
from tests.faults.test_storage_full import small_file_system
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger import restoring
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.backup import FILE, backup, move_blobs, require_whole
from weightledger.ledger.errors import CorruptLedger, InvalidRequest, NotFound, StorageError
from weightledger.ledger.restoring import restore
from weightledger.ledger.sql.database import Database
from weightledger.ledger.sql.schema import start_over

Plain = Callable[[str], Any]
MODEL = "m"
SIDE = 400


def change(log: Log, seed: int) -> None:
    """An update whose payload is a blob."""
    data = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    log.apply(IncrementalUpdateRequest("w", data, learning_rate=1.0, actor="me"))


@pytest.fixture(params=["database", "folder"])
def blob_url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return str(tmp_path / "blobs") if request.param == "folder" else None


@pytest.fixture
def database_url(empty_database_url: str) -> str:
    """What has tables has said where its blobs are."""
    return empty_database_url


@pytest.fixture
def log(database_url: str, blob_url: str | None) -> Iterator[Log]:
    with Ledger.open(database_url, blob_url=blob_url) as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(SIDE, SIDE), "b": torch.zeros(3)})
        change(log, 1)
        log.create_version("kept")
        log.apply(IncrementalUpdateRequest("b", 1.0))
        yield log


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / FILE}"


Facts = tuple[list[bytes], dict[str, dict[str, torch.Tensor]]]


def facts(log: Log) -> Facts:
    """The hashes of a log's events, and some of its states."""
    positions = ("seq:0", "v1", "head")
    return (
        [event.hash for event in log.history.events()],
        {position: log.history.state(position) for position in positions},
    )


def require_same(url: str, expected: Facts) -> None:
    """A copy has the same events, verifies, and rebuilds the same states."""
    hashes, states = expected
    with Ledger.open(url, upgrade=False) as ledger:
        history = ledger.history(MODEL)
        assert [event.hash for event in history.events()] == hashes
        assert verify(history).problem is None
        for position, tensors in states.items():
            state = history.state(position)
            assert all(torch.equal(state[name], tensors[name]) for name in tensors)


def test_a_backup_is_the_ledger_and_is_restored_into_either_database(
    log: Log, database_url: str, new_url: str, tmp_path: Path
) -> None:
    copied = backup(database_url, tmp_path / "copy")
    assert (copied.models, copied.events) == (1, len(log.events()))
    assert [path.name for path in (tmp_path / "copy").iterdir()] == [FILE]
    moved = (tmp_path / "copy").rename(tmp_path / "elsewhere")
    require_same(url_of(moved), facts(log))
    restore(moved, new_url)
    require_same(new_url, facts(log))
    with Ledger.open(new_url) as ledger:  # and it goes on
        again = ledger.model(MODEL)
        change(again, 2)
        ledger.model("another", base={"x": torch.zeros(2)})
        again.apply(IncrementalUpdateRequest("x" if "x" in again.state() else "b", 1.0))
        assert verify(again.history).problem is None
    with pytest.raises(InvalidRequest, match="holds a ledger already"):
        restore(moved, new_url)


def damage(url: str, plain: Plain) -> None:
    """Flip a bit of a small payload, which nothing but reading the log whole looks at."""
    connection = plain(url)
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    kept = triggers.fetchall()
    for name, _ in kept:
        connection.execute(f"DROP TRIGGER {name}")
    seq, payload = connection.execute(
        "SELECT event_key, payload FROM events WHERE payload IS NOT NULL"
    ).fetchone()
    flipped = payload[:-1] + bytes([payload[-1] ^ 1])
    connection.execute("UPDATE events SET payload = ? WHERE event_key = ?", (flipped, seq))
    for _, sql in kept:
        connection.execute(sql)
    connection.close()


def require_no_ledger(url: str) -> None:
    """There is none at a URL; a SQLite file is not there at all, nor anything beside it."""
    if url.startswith("sqlite"):
        file = Path(url.removeprefix("sqlite:///"))
        if not file.exists():
            assert list(file.parent.glob(f"{file.name}*")) == []
            return
    with Ledger.open(url) as ledger:
        assert ledger.models() == []


def in_one_file(test: Any) -> Any:
    """Of a ledger in one SQLite database."""
    for name, value in {"blob_url": "database", "database_url": "sqlite"}.items():
        test = pytest.mark.parametrize(name, [value], indirect=True)(test)
    return test


@in_one_file
@pytest.mark.parametrize("there", ["nothing", "tables"])
def test_a_backup_that_was_damaged_where_it_lay_leaves_nothing(
    log: Log, database_url: str, new_url: str, there: str, tmp_path: Path, plain: Plain
) -> None:
    good, bad = tmp_path / "good", tmp_path / "copy"
    backup(database_url, good)
    shutil.copytree(good, bad)
    damage(url_of(bad), plain)
    if there == "tables":
        Ledger.open(new_url).close()
    with pytest.raises(CorruptLedger, match=r"nothing was restored to .*does not verify") as caught:
        restore(bad, new_url, blob_url=str(tmp_path / "new blobs"))
    assert f"--data-dir {bad}" in str(caught.value)
    require_no_ledger(new_url)
    assert not (tmp_path / "new blobs").exists()
    restore(good, new_url, blob_url=str(tmp_path / "new blobs"))
    require_same(new_url, facts(log))


@in_one_file
def test_a_database_that_spoils_what_it_is_given_has_no_ledger_afterwards(
    log: Log,
    database_url: str,
    new_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backup(database_url, tmp_path / "copy")
    Ledger.open(new_url).close()

    def spoilt(url: str, told: Any) -> None:
        if url == new_url:
            raise CorruptLedger("a bit fell over", seq=1)
        require_whole(url, told)

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "require_whole", spoilt)
        with pytest.raises(CorruptLedger, match=r"nothing was restored to .*a bit fell over"):
            restore(tmp_path / "copy", new_url)
    require_no_ledger(new_url)
    restore(tmp_path / "copy", new_url)
    require_same(new_url, facts(log))
    with (
        contextlib.closing(Database.connect(new_url)) as database,
        pytest.raises(StorageError, match="was written to meanwhile"),
    ):
        start_over(database, events=1)
    require_same(new_url, facts(log))


@in_one_file
@pytest.mark.parametrize("new_url", ["sqlite"], indirect=True)
def test_a_database_that_came_meanwhile_is_not_replaced(
    log: Log, database_url: str, new_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(database_url, tmp_path / "copy")

    def meanwhile(url: str, told: Any) -> None:
        with Ledger.open(new_url) as ledger:
            ledger.model("theirs", base={"x": torch.zeros(2)})

    monkeypatch.setattr(restoring, "require_whole", meanwhile)
    with pytest.raises(InvalidRequest, match="is there meanwhile"):
        restore(tmp_path / "copy", new_url)
    with Ledger.open(new_url) as ledger:
        assert ledger.models() == ["theirs"]
    assert list(tmp_path.glob("*.partial*")) == []


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'restored.db'}"
        return
    admin = request.getfixturevalue("postgres_admin")
    admin.execute("DROP DATABASE IF EXISTS restored")
    admin.execute("CREATE DATABASE restored")
    yield request.getfixturevalue("postgres_server").get_uri(database="restored")


def test_a_backup_is_of_one_moment_while_others_write(
    log: Log, database_url: str, tmp_path: Path
) -> None:
    stop = threading.Event()

    def write() -> None:
        seed = 10
        while not stop.is_set():
            change(log, seed := seed + 1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            backup(database_url, tmp_path / f"copy{number}")
    finally:
        stop.set()
        writer.join()
    hashes = [event.hash for event in log.history.events(newest_first=False)]
    with Ledger.open(url_of(tmp_path / "copy2"), upgrade=False) as ledger:
        copied = [event.hash for event in ledger.history(MODEL).events(newest_first=False)]
    assert copied == hashes[: len(copied)] and len(copied) > 4


def test_what_cannot_be_backed_up_leaves_nothing(
    log: Log, database_url: str, tmp_path: Path
) -> None:
    digest = log.history.require(1).blobs[0]
    assert log.history.blobs.delete_unreferenced(digest, 1 << 62)
    with pytest.raises(CorruptLedger):
        backup(database_url, tmp_path / "copy")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(InvalidRequest, match="not an empty folder"):
        backup(database_url, tmp_path / "taken")
    assert not (tmp_path / "copy").exists() and not (tmp_path / "copy.partial").exists()
    with pytest.raises(NotFound, match="no backup"):
        restore(tmp_path / "copy", f"sqlite:///{tmp_path / 'new.db'}")


def test_blobs_move_to_a_folder_within_and_back(
    log: Log, database_url: str, blob_url: str | None, tmp_path: Path
) -> None:
    expected, elsewhere = facts(log), str(tmp_path / "new-blobs")
    assert move_blobs(database_url, elsewhere) > 0
    require_same(database_url, expected)
    if blob_url is not None:
        shutil.rmtree(blob_url)
        require_same(database_url, expected)
    Path(elsewhere).rename(tmp_path / "by-hand")
    assert move_blobs(database_url, str(tmp_path / "by-hand")) == 0
    require_same(database_url, expected)
    assert move_blobs(database_url, None) > 0
    shutil.rmtree(tmp_path / "by-hand")
    require_same(database_url, expected)
    with pytest.raises(InvalidRequest, match="already"):
        move_blobs(database_url, None)


def test_a_move_without_every_blob_changes_nothing(
    log: Log, database_url: str, blob_url: str | None, tmp_path: Path
) -> None:
    expected, digest = facts(log), log.history.require(1).blobs[0]
    data = log.history.blobs.get(digest)
    assert log.history.blobs.delete_unreferenced(digest, 1 << 62)
    with pytest.raises(CorruptLedger, match="missing"):
        move_blobs(database_url, str(tmp_path / "new-blobs"))
    log.history.blobs.put(digest, data)
    require_same(database_url, expected)


READING = (["log"], ["status"], ["version", "list"], ["verify"], ["show", "head"])


@pytest.mark.parametrize("what", ["folder", "backup"])
def test_a_cleanly_closed_ledger_is_read_where_nothing_can_be_written(
    tmp_path: Path, what: str
) -> None:
    with small_file_system(tmp_path / "small", "32m") as small:
        data = small / "data"
        data.mkdir()
        with Ledger.open(url_of(data)) as ledger:
            log = ledger.model(MODEL, base={"w": torch.zeros(9)})
            log.apply(IncrementalUpdateRequest("w", 1.0))
            log.create_version("one")
        if what == "backup":
            backup(url_of(data), small / "copy")
            data = small / "copy"
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        for words in READING:
            status, _, error = inside(*words, "--data-dir", str(data))
            assert status == 0, (words, error)


def test_a_copy_with_its_log_is_not_read_without_it(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", "32m") as small:
        with contextlib.ExitStack() as stack:
            ledger = stack.enter_context(Ledger.open(url_of(tmp_path)))
            ledger.model(MODEL, base={"w": torch.zeros(9)})
            for name in (FILE, f"{FILE}-wal"):
                shutil.copy(tmp_path / name, small / name)
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        with pytest.raises(StorageError, match="copy both to a folder"):
            Ledger.open(url_of(small), upgrade=False)
