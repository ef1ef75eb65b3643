"""The PostgreSQL role that a server runs as: it can append, and change nothing that is recorded.

Triggers stop whoever forgets; rights stop whoever means it, since only the tables' owner can switch
a trigger off. SQLite has no roles: there the file's permissions are all there is.
"""

from weightledger.ledger.sql import tables

# When a blob is put again, when a version is pinned or unpinned, and when a key is used.
_UPDATED = {"blobs": "touched_at", "listed_versions": "pinned", "api_key_uses": "used_at"}
# By gc; by retiring a version; as measurements get old.
_DELETED = (
    *("blobs", "blob_parts", "snapshots", "listed_versions"),
    *("metric_rollups", "metric_pushes"),
)


def grants(role: str) -> list[str]:
    """The statements, for the owner of the tables, that give an existing role what it needs."""
    to = '"' + role.replace('"', '""') + '"'
    names = ", ".join(sorted(tables.metadata.tables))
    return [
        f"GRANT USAGE ON SCHEMA public TO {to}",
        f"GRANT SELECT ON {names}, alembic_version TO {to}",
        f"GRANT INSERT ON {names} TO {to}",
        *(f"GRANT UPDATE ({column}) ON {table} TO {to}" for table, column in _UPDATED.items()),
        f"GRANT DELETE ON {', '.join(_DELETED)} TO {to}",
    ]
