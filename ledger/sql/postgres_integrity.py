"""Whether the ledger's tables in PostgreSQL are whole, and putting their indexes right."""

from collections.abc import Sequence

from weightledger.ledger.sql.backend import Execute

_AMCHECK = (
    "SELECT n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
    " WHERE e.extname = 'amcheck'"
)
_INDEXES = (
    "SELECT c.relname::text, t.relname::text, coalesce(pg_get_expr(i.indpred, i.indrelid), 'true'),"
    " (SELECT string_agg(pg_get_indexdef(i.indexrelid, k, true), ', ' ORDER BY k)"
    " FROM generate_series(1, i.indnkeyatts) k), c.oid::bigint"
    " FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid"
    " JOIN pg_am a ON a.oid = c.relam"
    " WHERE c.relnamespace = current_schema()::regnamespace AND a.amname = 'btree'"
    " AND t.relname <> 'alembic_version' ORDER BY 1"
)
_WAYS = {
    "with": {"seqscan": "off", "bitmapscan": "off", "sort": "off"},
    "without": {"indexscan": "off", "indexonlyscan": "off", "bitmapscan": "off"},
}
_SWITCHES = ("seqscan", "bitmapscan", "sort", "indexscan", "indexonlyscan")


def damage(execute: Execute, _statements: Sequence[str]) -> list[str]:
    """What amcheck finds where it is installed; else indexes that count other rows than tables.

    amcheck compares every index with its table, row by row; its findings are CorruptLedger.
    """
    indexes = execute(_INDEXES).fetchall()
    installed = execute(_AMCHECK).fetchone()
    if installed is not None:
        for *_, oid in indexes:
            execute(f'SELECT "{installed[0]}".bt_index_check(?::oid, true)', (oid,))
        return []
    found = []
    for name, table, where, columns, _ in indexes:
        counts = {way: _count(execute, table, where, columns, way) for way in _WAYS}
        if counts["with"] != counts["without"]:
            found.append(
                f"index {name} has {counts['with']} rows of {table}, the table has"
                f" {counts['without']}"
            )
    return found


def rebuild_indexes(execute: Execute, _statements: Sequence[str]) -> None:
    """Make every index from its table anew."""
    for table in sorted({table for _, table, *_ in execute(_INDEXES).fetchall()}):
        execute(f"REINDEX TABLE {table}")


def unprotect(execute: Execute, tables: Sequence[str]) -> None:
    """Switch off the triggers that refuse to change rows of these tables, in this transaction."""
    for table in tables:
        execute(f"ALTER TABLE {table} DISABLE TRIGGER {table}_append_only")


def protect(execute: Execute, tables: Sequence[str]) -> None:
    """Switch the triggers of these tables on again, whatever a session's role."""
    for table in tables:
        execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only")


def _count(execute: Execute, table: str, where: str, columns: str, way: str) -> int:
    for switch in _SWITCHES:
        execute(f"SET LOCAL enable_{switch} = {_WAYS[way].get(switch, 'on')}")
    (count,) = execute(
        f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {where} ORDER BY {columns} OFFSET 0) r"
    ).fetchone()
    for switch in _SWITCHES:
        execute(f"SET LOCAL enable_{switch} = on")
    return int(count)
