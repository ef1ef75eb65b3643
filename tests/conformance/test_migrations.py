"""Opening databases: fresh ones, other people's, newer ones, ones that were tampered with."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch
from alembic import command
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from tests.conformance.schemas import schema
from tests.conftest import EMPTY, new_database
from tests.fixtures import databases
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import SchemaMismatch, StorageError
from weightledger.ledger.sql import layout, tables, triggers
from weightledger.ledger.sql import schema as schemas
from weightledger.ledger.sql.database import Database
from weightledger.ledger.store.sql_store import SqlStore

Plain = Callable[[str], Any]


def engine(url: str) -> sa.Engine:
    return sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))


@pytest.fixture
def frozen_url(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[str]:
    """A database of the same kind as `database_url`, as a release left it."""
    kind = "sqlite" if database_url.startswith("sqlite") else "postgresql"
    folder = tmp_path / "frozen"
    folder.mkdir()
    with new_database(request, kind, folder, template=EMPTY) as url:
        databases.restore(url, None if kind == "sqlite" else request.getfixturevalue("plain")(url))
        yield url


def test_migrating_makes_the_tables_that_every_database_has(
    store: SqlStore, database_url: str, frozen_url: str, plain: Plain
) -> None:
    ours = schema(database_url, plain(database_url))
    SqlStore.open(frozen_url).close()
    assert ours == schema(frozen_url, plain(frozen_url))
    assert len(ours) > 30


def test_the_frozen_statements_make_what_the_code_says_there_is(
    empty_database_url: str, request: pytest.FixtureRequest, tmp_path: Path, plain: Plain
) -> None:
    kind = "sqlite" if empty_database_url.startswith("sqlite") else "postgresql"
    made = engine(empty_database_url)
    tables.metadata.create_all(made)
    made.dispose()
    connection = plain(empty_database_url)
    if kind == "postgresql":
        for table, column in (("events", "payload"), ("events", "header"), ("blob_parts", "data")):
            connection.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")
    for statement in triggers.statements(kind):
        connection.execute(statement)
    said = schema(empty_database_url, connection)
    folder = tmp_path / "migrated"
    folder.mkdir()
    with new_database(request, kind, folder, template=EMPTY) as url:
        SqlStore.open(url).close()
        assert schema(url, plain(url)) == said


def test_a_frozen_ledger_is_whole_and_goes_on(frozen_url: str) -> None:
    with Ledger.open(frozen_url) as ledger:
        log = ledger.model(databases.MODEL)
        report = verify(log.history)
        assert (report.problem, report.events) == (None, 8)
        assert torch.equal(log.state()["w"], torch.arange(6.0).reshape(2, 3) + 0.5)
        event = log.apply(IncrementalUpdateRequest("w", 1.0, 1.0, idempotency_key="k2"))
        assert (event.seq, event.number) == (8, 4)
        assert verify(log.history).ok


def test_the_newest_revision_is_the_one_the_store_asks_for() -> None:
    script = ScriptDirectory.from_config(schemas._config())
    assert script.get_heads() == [layout.REVISION]


def test_opening_again_keeps_everything(empty_database_url: str, new_writer: Any) -> None:
    store = SqlStore.open(empty_database_url)
    event = new_writer(store).append()
    store.close()
    again = SqlStore.open(empty_database_url, upgrade=False)
    assert again.model("m").head() == event
    again.close()


OPEN = """
import sys
from weightledger.ledger.store.sql_store import SqlStore
barrier.wait()
store = SqlStore.open(url)
store.models()
store.close()
sys.exit(10 if "alembic" in sys.modules else 0)
"""

# These processes have loaded it: they are forked from one that has.
WITHOUT_ALEMBIC = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "alembic"]:
    del sys.modules[name]
"""

# Loading alembic takes longer than migrating, so it must not come between the two.
RACE_TO_MIGRATE = "import alembic.command, alembic.autogenerate\n" + OPEN


def test_an_up_to_date_database_opens_without_alembic(
    store: SqlStore, database_url: str, processes: Any
) -> None:
    opening = WITHOUT_ALEMBIC + OPEN
    assert processes.race(opening, {"url": database_url}, count=1) == [0]


def test_two_processes_may_open_a_fresh_database_at_once(
    empty_database_url: str, processes: Any, new_writer: Any
) -> None:
    assert processes.race(RACE_TO_MIGRATE, {"url": empty_database_url}, count=3) == [10, 10, 10]
    store = SqlStore.open(empty_database_url, upgrade=False)
    new_writer(store).append()
    store.close()


def test_a_database_that_would_need_migrating_is_left_alone_when_asked(
    empty_database_url: str, tmp_path: Path, plain: Plain
) -> None:
    if empty_database_url.startswith("sqlite"):
        with pytest.raises(StorageError, match="no database"):
            SqlStore.open(empty_database_url, upgrade=False)
        assert list(tmp_path.iterdir()) == []
        plain(empty_database_url).execute("VACUUM")
    with pytest.raises(SchemaMismatch, match="weightledger db upgrade"):
        SqlStore.open(empty_database_url, upgrade=False)


def test_a_copy_without_its_log_is_not_made_a_new_ledger(tmp_path: Path, new_writer: Any) -> None:
    used, copy = tmp_path / "used", tmp_path / "copy"
    used.mkdir()
    copy.mkdir()
    store = SqlStore.open(f"sqlite:///{used}/ledger.db")
    new_writer(store).append()
    assert not (used / "ledger.db-new").exists()
    shutil.copy(used / "ledger.db", copy)
    before = (copy / "ledger.db").read_bytes()
    for upgrade in (False, True):
        with pytest.raises(
            SchemaMismatch, match=r"a copy that was made without ledger\.db-wal"
        ) as told:
            SqlStore.open(f"sqlite:///{copy}/ledger.db", upgrade=upgrade)
        assert "db upgrade" not in str(told.value)
    assert (copy / "ledger.db").read_bytes() == before
    # With its log the copy is whole; so is the file alone once the ledger is closed.
    shutil.copy(used / "ledger.db-wal", copy)
    assert SqlStore.open(f"sqlite:///{copy}/ledger.db", upgrade=False).models() == store.models()
    store.close()
    shutil.copy(used / "ledger.db", tmp_path / "closed.db")
    closed = SqlStore.open(f"sqlite:///{tmp_path}/closed.db", upgrade=False)
    assert closed.models() == ["m"]
    closed.close()


def test_a_start_that_was_killed_while_it_made_tables_goes_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    program = """
import os, sys
from weightledger.ledger.sql import schema
schema._run_alembic = lambda connection: os._exit(9)
from weightledger.ledger.store.sql_store import SqlStore
SqlStore.open(sys.argv[1])
"""
    assert subprocess.run([sys.executable, "-c", program, url]).returncode == 9
    assert (tmp_path / "ledger.db-new").exists()
    SqlStore.open(url).close()
    assert not (tmp_path / "ledger.db-new").exists()
    SqlStore.open(url, upgrade=False).close()


def test_a_newer_revision_is_refused_by_name(
    store: SqlStore, database_url: str, plain: Plain
) -> None:
    plain(database_url).execute("UPDATE alembic_version SET version_num = '9999'")
    for upgrade in (True, False):
        with pytest.raises(SchemaMismatch, match=f"9999.*{layout.REVISION}.*newer release"):
            SqlStore.open(database_url, upgrade=upgrade)


@pytest.mark.parametrize(
    "made",
    [
        ["CREATE TABLE customers (id INTEGER)"],
        ["CREATE TABLE models (id INTEGER)"],
        [
            "CREATE TABLE customers (id INTEGER)",
            "CREATE TABLE alembic_version (version_num TEXT)",
            "INSERT INTO alembic_version VALUES ('ae10')",
        ],
    ],
    ids=["tables", "a table called as ours", "alembic"],
)
def test_another_applications_database_is_refused_and_not_touched(
    empty_database_url: str, plain: Plain, made: list[str]
) -> None:
    connection = plain(empty_database_url)
    for statement in made:
        connection.execute(statement)
    before = fingerprint(empty_database_url)
    for upgrade in (True, False):
        with pytest.raises(SchemaMismatch, match="belongs to another application"):
            SqlStore.open(empty_database_url, upgrade=upgrade)
    assert fingerprint(empty_database_url) == before


def fingerprint(url: str) -> Any:
    if url.startswith("sqlite"):
        return Path(url.removeprefix("sqlite:///")).read_bytes()
    other = engine(url)
    names = sa.inspect(other).get_table_names()
    other.dispose()
    return names


def trigger_names(url: str) -> list[tuple[str, str]]:
    if url.startswith("sqlite"):
        return [(name, "") for name in triggers.sqlite_triggers()]
    return [(item.name, f" ON {item.table}") for item in triggers.postgres_triggers().values()]


def test_a_missing_trigger_is_named_when_opening(
    store: SqlStore, database_url: str, plain: Plain
) -> None:
    connection = plain(database_url)
    name, table = trigger_names(database_url)[-1]
    connection.execute(f"DROP TRIGGER {name}{table}")
    with pytest.raises(SchemaMismatch, match=f"not append-only: trigger {name} is"):
        SqlStore.open(database_url)


def test_every_trigger_is_looked_for(store: SqlStore, database_url: str, plain: Plain) -> None:
    connection = plain(database_url)
    names = trigger_names(database_url)
    for name, table in names:
        connection.execute(f"DROP TRIGGER {name}{table}")
    with pytest.raises(SchemaMismatch) as caught:
        SqlStore.open(database_url)
    assert all(name in str(caught.value) for name, _ in names)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("ALTER TABLE events DISABLE TRIGGER events_follow", "events_follow"),
        ("ALTER TABLE events ENABLE TRIGGER events_append_only", "events_append_only"),
        (
            "CREATE OR REPLACE FUNCTION weightledger_refuse() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN RETURN NULL; END'",
            "touches_append_only",
        ),
        (
            "CREATE OR REPLACE TRIGGER events_append_only BEFORE DELETE ON events"
            " FOR EACH STATEMENT EXECUTE FUNCTION weightledger_refuse()",
            "events_append_only",
        ),
        (
            "CREATE OR REPLACE TRIGGER events_follow BEFORE INSERT ON events FOR EACH ROW"
            " WHEN (NEW.event_key < 0) EXECUTE FUNCTION weightledger_follow()",
            "events_follow",
        ),
    ],
)
def test_a_weakened_trigger_is_noticed_on_postgresql(
    postgres_server: Any, plain: Plain, change: str, name: str
) -> None:
    plain(postgres_server.get_uri()).execute("DROP DATABASE IF EXISTS weak WITH (FORCE)")
    plain(postgres_server.get_uri()).execute("CREATE DATABASE weak")
    url = postgres_server.get_uri(database="weak")
    SqlStore.open(url).close()
    plain(url).execute(change)
    with pytest.raises(SchemaMismatch, match=name):
        SqlStore.open(url)


def test_a_weakened_trigger_is_noticed_on_sqlite(sqlite_url: str, plain: Plain) -> None:
    SqlStore.open(sqlite_url).close()
    connection = plain(sqlite_url)
    connection.execute("DROP TRIGGER events_no_delete")
    connection.execute(
        "CREATE TRIGGER events_no_delete BEFORE DELETE ON events BEGIN SELECT RAISE(IGNORE); END"
    )
    with pytest.raises(SchemaMismatch, match="events_no_delete"):
        SqlStore.open(sqlite_url)


def test_there_is_no_way_back(store: SqlStore, database_url: str, new_writer: Any) -> None:
    new_writer(store).append()
    database = Database.connect(database_url)
    config = schemas._config()

    def downgrade() -> None:
        with database.change_schema() as (connection, _):
            config.attributes["connection"] = connection
            command.downgrade(config, "base")

    with pytest.raises(CommandError, match="append-only"):
        downgrade()
    database.close()
    assert store.model("m").head().seq == 0


def test_a_failed_migration_leaves_the_database_as_it_was(
    empty_database_url: str, plain: Plain
) -> None:
    database = Database.connect(empty_database_url)

    def migrate_and_fail() -> None:
        with database.change_schema() as (connection, _):
            schemas._run_alembic(connection)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        migrate_and_fail()
    with database.read() as execute:
        assert database.backend.table_names(execute) == set()
    database.close()
    SqlStore.open(empty_database_url).close()


def test_every_connection_writes_durably_and_sees_deletes_by_replace(sqlite_url: str) -> None:
    store = SqlStore.open(sqlite_url)
    expected = {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "recursive_triggers": 1,
        "page_size": 8192,
        "busy_timeout": 10_000,
    }
    with store._database.read() as one, store._database.write() as two:
        for execute in (one, two):
            found = {name: execute(f"PRAGMA {name}").fetchone()[0] for name in expected}
            assert found == expected
    store.close()
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
