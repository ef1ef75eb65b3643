"""Whether a SQLite file is whole, and putting its indexes right."""

from collections.abc import Iterator, Sequence
from contextlib import closing

from weightledger.ledger.sql import triggers
from weightledger.ledger.sql.backend import Execute
from weightledger.ledger.sql.sqlite_driver import driver

_MOST = 20  # findings that are listed
_AFFINITIES = {"INT": "integer", "CHAR": "text", "TEXT": "text", "BLOB": "blob", "REAL": "real"}
_CATALOGUE = (
    "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE tbl_name <> 'alembic_version'"
)


def damage(execute: Execute, statements: Sequence[str]) -> list[str]:
    """What SQLite's own checks find, and tables and indexes that are not as `statements` made them.

    `integrity_check` compares every index with its table, row by row. It takes a value of any type
    in any column, as SQLite does; ours hold their own.
    """
    found = [line for (line,) in execute(f"PRAGMA integrity_check({_MOST})").fetchall()]
    found = [] if found == ["ok"] else found
    lost = execute("PRAGMA foreign_key_check").fetchall()
    found += [f"row {row[1]} of {row[0]} refers to a row of {row[2]} that is not" for row in lost]
    found += [f"{kind} {name} is {how}" for kind, name, how, _ in _changed(execute, statements)]
    return found + list(_mistyped(execute))


def _mistyped(execute: Execute) -> Iterator[str]:
    """Columns with a value of another type than theirs."""
    names = execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    for (table,) in names:
        for _, column, declared, *_ in execute(f"PRAGMA table_info({table})").fetchall():
            own = next((own for word, own in _AFFINITIES.items() if word in declared.upper()), None)
            (count,) = execute(
                f"SELECT count(*) FROM {table} WHERE typeof({column}) NOT IN (?, 'null')", (own,)
            ).fetchone()
            if own and count:
                yield f"{count} value(s) of {table}.{column} are not {own}"


def rebuild_indexes(execute: Execute, statements: Sequence[str]) -> None:
    """Make every index from its table anew, those included that are missing or were changed."""
    for kind, name, how, sql in _changed(execute, statements):
        if kind == "index" and sql:
            if how == "changed":
                execute(f"DROP INDEX {name}")
            execute(sql)
    execute("REINDEX")


def unprotect(execute: Execute, tables: Sequence[str]) -> None:
    """Take away the triggers that refuse to change rows of these tables, in this transaction.

    What is removed then is overwritten in the file, instead of being left in its free space.
    """
    execute("PRAGMA secure_delete = ON")
    for name in _triggers(tables):
        execute(f"DROP TRIGGER IF EXISTS {name}")


def protect(execute: Execute, tables: Sequence[str]) -> None:
    """Put the triggers of these tables back."""
    for sql in _triggers(tables).values():
        execute(sql)


def _triggers(tables: Sequence[str]) -> dict[str, str]:
    made = triggers.sqlite_triggers()
    return {n: sql for n, sql in made.items() if n.rpartition("_no_")[0] in tables}


def _changed(
    execute: Execute, statements: Sequence[str]
) -> Iterator[tuple[str, str, str, str | None]]:
    """Kind, name, what happened to it and the statement, of what is not as it was made."""
    there = {(kind, name): rest for kind, name, *rest in execute(_CATALOGUE).fetchall()}
    with closing(driver.connect(":memory:")) as memory:
        for statement in statements:
            memory.execute(statement)
        for kind, name, table, sql in memory.execute(_CATALOGUE).fetchall():
            if there.get((kind, name)) != [table, sql]:
                yield kind, name, "changed" if (kind, name) in there else "missing", sql
