"""SQLite's write-ahead log: short, and no commit is lost when processes checkpoint at once.

The storm runs with the library in use, which is without the WAL-reset fault, and with the system's
one, which has it: there it is the writers' lock that keeps it harmless.
"""

import contextlib
import fcntl
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.faults.children import Children
from tests.faults.folders import MODEL
from tests.serving import serving
from tests.waiting import PATIENCE_S, until
from weightledger import Ledger
from weightledger.ledger.sql import journal, sqlite, sqlite_driver
from weightledger.ledger.sql.database import Database

PROCESSES = 4
LIMIT_BYTES, PATIENT_BYTES = 32 * 1024, 128 * 1024
ROW_BYTES = 12_000  # two pages
CHECKPOINT_LOCK = 121  # its byte in the log's index, https://sqlite.org/walformat.html
LIBRARIES = ("ours", "system")


def use(library: str) -> None:
    """In a process of the storm: short logs, and the library that is asked for."""
    journal.LIMIT_BYTES = LIMIT_BYTES
    journal.PATIENT_BYTES = PATIENT_BYTES
    if library == "system":
        sqlite.driver = sqlite3
        sqlite.ERRORS = (sqlite3.Error,)


def write(file: str, library: str, writer: int, start: int, rows: int) -> tuple[int, int]:
    """Commit rows one by one and count them after each; the longest log that was seen."""
    use(library)
    log, longest = Path(f"{file}-wal"), 0
    first = writer << 32
    database = Database.connect(f"sqlite:///{file}")
    for number in range(start, start + rows):
        with database.write() as execute:
            execute("INSERT INTO storm VALUES (?, ?)", (first + number, os.urandom(ROW_BYTES)))
        with contextlib.suppress(FileNotFoundError):
            longest = max(longest, log.stat().st_size)
        with database.read() as execute:
            (seen,) = execute(
                "SELECT count(*) FROM storm WHERE n BETWEEN ? AND ?", (first, first + number)
            ).fetchone()
        assert seen == number + 1, f"{number + 1 - seen} committed rows of writer {writer} are gone"
    database.close()
    return start + rows, longest


def storm(folder: Path, library: str, rounds: int, rows: int) -> int:
    """Rounds in which all connections close in between; gives the longest log."""
    file = str(folder / "storm.db")
    database = Database.connect(f"sqlite:///{file}")
    database.prepare()
    with database.write() as execute:
        execute("CREATE TABLE storm (n INTEGER PRIMARY KEY, data BLOB)")
    database.close()
    children = Children(PROCESSES)
    longest = 0
    try:
        for number in range(rounds):
            work = [(file, library, writer, number * rows, rows) for writer in range(PROCESSES)]
            done = children.run(write, *work)
            assert all(isinstance(one, tuple) for one in done), done
            longest = max(longest, *(seen for _, seen in done))
    finally:
        children.end()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (count,) = connection.execute("SELECT count(*) FROM storm").fetchone()
    assert count == PROCESSES * rounds * rows
    return longest


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_checkpoint_storm_loses_nothing_and_the_log_stays_short(
    tmp_path: Path, library: str
) -> None:
    longest = storm(tmp_path, library, rounds=2, rows=50)
    assert LIMIT_BYTES < longest < 20 * LIMIT_BYTES  # of 150 that are written


@pytest.mark.soak
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_long_checkpoint_storm(tmp_path: Path, library: str) -> None:
    until = time.monotonic() + 300
    number = 0
    while time.monotonic() < until:
        folder = tmp_path / str(number)
        folder.mkdir()
        storm(folder, library, rounds=3, rows=500)
        (folder / "storm.db").unlink()
        number += 1


def test_no_connection_checkpoints_by_itself(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with contextlib.closing(Database.connect(url)) as database, database.read() as execute:
        assert execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)


def test_a_reader_puts_off_the_checkpoint_and_then_the_log_is_short_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "LIMIT_BYTES", LIMIT_BYTES)
    log = tmp_path / "a.db-wal"
    with contextlib.closing(Database.connect(f"sqlite:///{tmp_path / 'a.db'}")) as database:
        database.prepare()
        with database.write() as execute:
            execute("CREATE TABLE t (data BLOB)")

        def grow() -> int:
            for _ in range(20):
                with database.write() as execute:
                    execute("INSERT INTO t VALUES (?)", (os.urandom(ROW_BYTES),))
            return log.stat().st_size

        with database.read() as reading:
            reading("SELECT count(*) FROM t").fetchone()
            assert grow() > 4 * LIMIT_BYTES
        # The limit, half of it again until a commit checkpoints itself, and two rows with pages.
        assert grow() <= 3 * LIMIT_BYTES


class Aside:
    """The thread that checkpoints, held up until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        shorten = journal.WriteAheadJournal._shorten_aside

        def later(kept: journal.WriteAheadJournal) -> None:
            self.begun.set()
            assert self.go.wait(PATIENCE_S)
            shorten(kept)

        monkeypatch.setattr(journal, "LIMIT_BYTES", LIMIT_BYTES)
        monkeypatch.setattr(journal, "PATIENT_BYTES", 1 << 40)
        monkeypatch.setattr(journal, "_ASIDE_S", PATIENCE_S)
        monkeypatch.setattr(journal.WriteAheadJournal, "_shorten_aside", later)


@contextlib.contextmanager
def table(file: Path) -> Iterator[Database]:
    with contextlib.closing(Database.connect(f"sqlite:///{file}")) as database:
        database.prepare()
        with database.write() as execute:
            execute("CREATE TABLE t (data BLOB)")
        yield database


def insert(database: Database, size: int) -> None:
    with database.write() as execute:
        execute("INSERT INTO t VALUES (?)", (os.urandom(size),))


def join(database: Database) -> None:
    """Wait for the thread that checkpoints."""
    kept: Any = database._journal
    kept._aside.join()


def test_a_large_commit_does_not_wait_for_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside, file, log = Aside(monkeypatch), tmp_path / "a.db", tmp_path / "a.db-wal"
    with table(file) as database:
        size = file.stat().st_size
        insert(database, 20 * LIMIT_BYTES)
        assert log.stat().st_size > 20 * LIMIT_BYTES
        assert file.stat().st_size == size
        aside.go.set()
        join(database)
        assert file.stat().st_size > 20 * LIMIT_BYTES
        insert(database, 1)  # which starts the log over
        assert log.stat().st_size <= LIMIT_BYTES


def test_the_log_stays_short_where_the_thread_never_has_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside, log = Aside(monkeypatch), tmp_path / "a.db-wal"
    longest = 0
    with table(tmp_path / "a.db") as database:
        for number in range(60):
            insert(database, ROW_BYTES if number % 20 else 10 * LIMIT_BYTES)
            longest = max(longest, log.stat().st_size)
        assert aside.begun.is_set()
        assert log.stat().st_size <= 3 * LIMIT_BYTES
        aside.go.set()
    assert longest < 15 * LIMIT_BYTES  # one large commit after what may be there; of 50 and more


def test_the_thread_checkpoints_only_with_the_lock_of_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside, file = Aside(monkeypatch), tmp_path / "a.db"
    tried, locked = threading.Semaphore(0), journal._locked

    def trying(descriptor: int) -> bool:
        tried.release()
        return locked(descriptor)

    with table(file) as database:
        insert(database, 20 * LIMIT_BYTES)
        size = file.stat().st_size
        with Path(f"{file}-writer").open() as other:  # as another process has it
            fcntl.flock(other, fcntl.LOCK_EX)
            monkeypatch.setattr(journal, "_locked", trying)
            aside.go.set()
            for _ in range(3):
                assert tried.acquire(timeout=PATIENCE_S)
            assert file.stat().st_size == size
        join(database)
        assert file.stat().st_size > size


def test_closing_waits_for_the_thread_and_leaves_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside, file = Aside(monkeypatch), tmp_path / "a.db"
    with table(file) as database:
        insert(database, 20 * LIMIT_BYTES)
        kept: Any = database._journal
        aside.go.set()
    assert not kept._aside.is_alive()
    assert not Path(f"{file}-wal").exists()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT sum(length(data)) FROM t").fetchone() == (
            20 * LIMIT_BYTES,
        )


def test_a_checkpoint_aside_that_fails_is_told_and_the_next_commit_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    aside, file = Aside(monkeypatch), tmp_path / "a.db"
    aside.go.set()
    with table(file) as database:
        kept: Any = database._journal
        connect = kept._connect

        def fail() -> Any:
            raise sqlite3.OperationalError("disk I/O error")

        kept._connect = fail
        insert(database, 2 * LIMIT_BYTES)
        join(database)
        assert "could not be shortened: disk I/O error" in caplog.text
        kept._connect = connect
        insert(database, 1)
        join(database)
        assert file.stat().st_size > 2 * LIMIT_BYTES


def test_the_log_stays_short_where_somebody_always_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "LIMIT_BYTES", LIMIT_BYTES)
    monkeypatch.setattr(journal, "PATIENT_BYTES", PATIENT_BYTES)
    # However long it takes on this machine until one reader has begun and the other has ended.
    monkeypatch.setattr(journal, "_PATIENCE_MS", 60_000)
    log = tmp_path / "a.db-wal"
    with contextlib.closing(Database.connect(f"sqlite:///{tmp_path / 'a.db'}")) as database:
        database.prepare()
        with database.write() as execute:
            execute("CREATE TABLE t (data BLOB)")
        turn, over = threading.Semaphore(0), threading.Event()

        def read_by_turns() -> None:
            """Each begins before the one before it ends, one commit or so after that began."""
            with contextlib.ExitStack() as last:
                while not over.is_set():
                    turn.acquire(timeout=0.01)
                    with contextlib.ExitStack() as mine:
                        reading = mine.enter_context(database.read())
                        reading("SELECT count(*) FROM t").fetchone()
                        last.close()
                        last.push(mine.pop_all())

        longest = 0
        reader = threading.Thread(target=read_by_turns)
        reader.start()
        try:
            for _ in range(150):
                with database.write() as execute:
                    execute("INSERT INTO t VALUES (?)", (os.urandom(ROW_BYTES),))
                turn.release()
                longest = max(longest, log.stat().st_size)
        finally:
            over.set()
            reader.join()
    assert LIMIT_BYTES < longest <= PATIENT_BYTES + 4 * ROW_BYTES  # of 2,400 KiB


def test_the_log_is_cut_also_where_another_checkpoints_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For that lock SQLite does not wait, however patient: it says at once that it is busy."""
    monkeypatch.setattr(journal, "_PATIENCE_MS", 60_000)
    file = tmp_path / "a.db"
    with contextlib.closing(sqlite_driver.driver.connect(file, isolation_level=None)) as connection:
        for statement in ("PRAGMA journal_mode = WAL", "CREATE TABLE t (n INTEGER)"):
            connection.execute(statement).fetchall()
        busy = []
        with Path(f"{file}-shm").open("r+b") as other:
            lock = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, CHECKPOINT_LOCK, 1, 0)
            fcntl.fcntl(other, fcntl.F_OFD_SETLK, lock)

            def execute(statement: str) -> Any:
                cursor = connection.execute(statement)
                if "checkpoint" not in statement:
                    return cursor
                row = cursor.fetchone()
                busy.append(row[0])
                other.close()  # it has checkpointed
                return SimpleNamespace(fetchone=lambda: row)

            journal._checkpoint_after_readers(execute)
        assert busy == [1, 0] and Path(f"{file}-wal").stat().st_size == 0


def test_the_log_is_cut_also_where_readers_take_over_the_place_that_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself would wait for as long as they do, though they need nothing of the log."""
    monkeypatch.setattr(journal, "_PATIENCE_MS", 60_000)
    file = tmp_path / "a.db"
    with contextlib.ExitStack() as closing:

        def connected() -> Any:
            connection = sqlite_driver.driver.connect(
                file, isolation_level=None, check_same_thread=False
            )
            return closing.enter_context(contextlib.closing(connection))

        def begin(reader: Any) -> None:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM t").fetchone()

        writer = connected()
        for pragma in ("PRAGMA journal_mode = WAL", "PRAGMA wal_autocheckpoint = 0"):
            writer.execute(pragma).fetchone()
        writer.execute("CREATE TABLE t (n INTEGER)")
        first, second, third, fourth = (connected() for _ in range(4))
        for reader in (first, second):  # each has a place of its own, of another commit
            begin(reader)
            writer.execute("INSERT INTO t VALUES (1)")
        cutting = threading.Thread(target=journal._checkpoint_after_readers, args=(writer.execute,))
        cutting.start()
        status = Path(f"/proc/self/task/{cutting.native_id}/status")
        until(lambda: int(status.read_text().split("voluntary_ctxt_switches:")[1].split()[0]) > 8)
        first.execute("COMMIT")
        begin(third)  # takes the place of the first
        second.execute("COMMIT")
        while cutting.is_alive():
            begin(fourth)
            third.execute("COMMIT")
            third, fourth = fourth, third
        assert Path(f"{file}-wal").stat().st_size == 0


def test_a_log_that_nothing_was_written_to_yet_is_not_called_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first transaction after a start may find nothing to write, as a snapshot's does."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    with Ledger.open(url) as ledger:
        ledger.model(MODEL, base={"w": torch.zeros(3)}).snapshot()
    with Ledger.open(url) as ledger:
        ledger.model(MODEL).snapshot()
        with ledger.store._database.write():
            pass
    assert "was removed" not in caplog.text


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 4), True),
    ],
)
def test_which_versions_are_safe(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], safe: bool
) -> None:
    class Library:
        sqlite_version_info = version
        sqlite_version = ".".join(map(str, version))

    monkeypatch.setattr(sqlite_driver, "driver", Library)
    assert sqlite_driver.is_safe() is safe
    assert (sqlite_driver.weakness() is None) is safe
    assert ("unsafe" in sqlite_driver.name()) is not safe


def test_the_library_here_is_safe_and_health_names_it(tmp_path: Path) -> None:
    assert sqlite_driver.is_safe()
    with serving(tmp_path / "data", "--model", MODEL) as server, server.client() as http:
        assert http.get("/health").json()["database"] == sqlite_driver.name()
