"""What a database's catalogue says of the ledger's tables, to compare two of them."""

from typing import Any

_POSTGRES = (
    "SELECT 'column', c.relname::text, a.attname::text, concat_ws(' ',"
    " format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attstorage, a.attnum)"
    " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
    " WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r' AND a.attnum > 0",
    "SELECT 'index', tablename::text, indexname::text, indexdef FROM pg_indexes"
    " WHERE schemaname = current_schema()",
    "SELECT 'constraint', conrelid::regclass::text, conname::text, pg_get_constraintdef(oid)"
    " FROM pg_constraint WHERE connamespace = current_schema()::regnamespace",
    "SELECT 'trigger', tgrelid::regclass::text, tgname::text,"
    " concat_ws(' ', pg_get_triggerdef(oid), tgenabled) FROM pg_trigger WHERE NOT tgisinternal",
    "SELECT 'function', '', proname::text, pg_get_functiondef(oid) FROM pg_proc"
    " WHERE pronamespace = current_schema()::regnamespace",
)


def schema(url: str, connection: Any) -> set[tuple[Any, ...]]:
    """Everything that there is, alembic's own table apart."""
    if url.startswith("sqlite"):
        told = connection.execute("SELECT type, tbl_name, name, sql FROM sqlite_master").fetchall()
        # Columns that were added stand on one line.
        rows = [(*row, None if sql is None else " ".join(sql.split())) for *row, sql in told]
    else:
        rows = [row for query in _POSTGRES for row in connection.execute(query).fetchall()]
    return {row for row in rows if "alembic_version" not in row[1]}
