"""Opening a database: whose it is, whether it has to be migrated, whether it is append-only.

A database at the newest revision is opened without alembic. Two processes may open a fresh one at
the same moment: one migrates, the other waits and finds it done.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from weightledger.ledger.errors import SchemaMismatch, StorageError
from weightledger.ledger.sql.backend import Execute
from weightledger.ledger.sql.database import Database
from weightledger.ledger.sql.layout import REVISION

if TYPE_CHECKING:
    from alembic.config import Config

# Beside the package, in a checkout as in an installation; a name would find any `migrations`.
_MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
_VERSION_TABLE = "alembic_version"


def open_schema(database: Database, *, upgrade: bool = True, guarded: bool = True) -> None:
    """Bring the tables to this release's revision and check that they are append-only.

    Raises SchemaMismatch for another application's database, one of a newer release, one that
    is not append-only unless `guarded=False`, and with `upgrade=False` one that would have to be
    migrated.
    """
    with database.read() as execute:
        found = revision(database, execute)
    missing = database.torn() if found is None else None
    if missing is not None:
        found = _tables_of_others(database, missing)
    if found != REVISION:
        _require_known(database, found)
        if not upgrade:
            state = f"is at revision {found}" if found else "has no tables"
            raise SchemaMismatch(
                f"{database.name} {state}, this release needs {REVISION}: "
                "run `weightledger db upgrade`"
            )
        with database.making():
            _upgrade(database)
    elif upgrade:
        database.made()
    if guarded:
        with database.read() as execute:
            _require_append_only(database, execute)


def start_over(database: Database, *, events: int) -> None:
    """Make every table anew, empty, of a ledger of so many events that nobody was told of yet.

    StorageError, with nothing changed, where somebody has written to it since.
    """
    # Opening a database that is there needs neither, nor what they import.
    from weightledger.ledger.sql.tables import metadata
    from weightledger.ledger.sql.triggers import functions

    with database.change_schema() as (connection, execute):
        if database.kind == "postgresql":  # SQLite has locked out other writers already
            execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        ((count,),) = execute("SELECT count(*) FROM events").fetchall()
        if count != events:
            raise StorageError(f"{database.name} was written to meanwhile, and stays as it is")
        for table in reversed(metadata.sorted_tables):
            execute(f"DROP TABLE {table.name}")
        execute(f"DROP TABLE {_VERSION_TABLE}")
        for function in functions(database.kind):
            execute(f"DROP FUNCTION {function}")
        _run_alembic(connection)
        _require_append_only(database, execute)


def revision(database: Database, execute: Execute) -> str | None:
    """The alembic revision of a database, None for an empty one; SchemaMismatch if not ours."""
    names = database.backend.table_names(execute)
    found = None
    if _VERSION_TABLE in names:
        rows = execute(f"SELECT version_num FROM {_VERSION_TABLE} ORDER BY 1")
        found = ", ".join(str(number) for (number,) in rows) or None
    others = names - {_VERSION_TABLE}
    if (others and found is None) or (found and not {"models", "events"} <= others):
        few = ", ".join(sorted(names)[:5])
        raise SchemaMismatch(
            f"{database.name} belongs to another application (it has the tables {few}):"
            " a ledger needs a database of its own"
        )
    return found


def _tables_of_others(database: Database, missing: str) -> str:
    """The revision that another process has made meanwhile; SchemaMismatch for a copy whose tables
    stayed where it was made, in the file that is missing."""
    with database.read() as execute:
        found = revision(database, execute)
    if found is None:
        raise SchemaMismatch(
            f"{database.name} was in use and has no tables: it looks like a copy that was made"
            f" without {missing}, where they are. Copy both, or copy when no server is running; if"
            " there never was a ledger here, remove the file"
        )
    return found


def statements(kind: str) -> list[str]:
    """Every statement of the migrations, in order, for "sqlite" or "postgresql"."""
    files = sorted((_MIGRATIONS / "versions").glob(f"*.{kind}.sql"))
    texts = (file.read_text("utf-8").split("\n;\n") for file in files)
    return [statement for text in texts for statement in text if statement.strip()]


def _upgrade(database: Database) -> None:
    database.prepare()
    with database.change_schema() as (connection, execute):
        found = revision(database, execute)
        if found == REVISION:
            return
        _require_known(database, found)
        _run_alembic(connection)
        _require_append_only(database, execute)


def _require_append_only(database: Database, execute: Execute) -> None:
    weak = database.backend.weaknesses(execute)
    if weak:
        raise SchemaMismatch(
            f"{database.name} is not append-only: {'; '.join(weak)}. Run `weightledger verify` to"
            " see whether the log is whole, and put it right before you go on"
        )


def _run_alembic(connection: sa.Connection) -> None:
    from alembic import command  # a third of a second that an up-to-date database does not need

    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _require_known(database: Database, found: str | None) -> None:
    """Raise SchemaMismatch unless there is a way from this revision to ours."""
    if found is None:  # from nothing there is; to read which there are takes as long as to migrate
        return
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found not in known:
        raise SchemaMismatch(
            f"{database.name} is at revision {found}, which this release does not know (its newest"
            f" is {REVISION}): it was made by a newer release"
        )


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config
