"""The PostgreSQL role that a server runs as: it can append, and change nothing that is recorded
but for what an event of the log redacts (`redact_function`).

Triggers stop whoever forgets; rights stop whoever means it, since only the tables' owner can switch
a trigger off. SQLite has no roles: there the file's permissions are all there is.
"""

from weightledger.ledger.sql import redact_function, tables

# When a blob is put again, when a version is pinned or unpinned, and when a key is used.
_UPDATED = {"blobs": "touched_at", "listed_versions": "pinned", "api_key_uses": "used_at"}
# What those who follow say, of themselves and of what is proposed: the only rows that they write.
_REPLICAS = ("replicas", "replica_states", "attestations")
_MEASURED = "metric_rollups"
# By gc; by retiring a version; by redacting; as measurements get old; once replicas have answered.
_DELETED = (
    *("blobs", "blob_parts", "snapshots", "listed_versions", "search_blocks"),
    *("metric_rollups", "metric_pushes"),
    "proposals",
)


def grants(role: str, *, follower: bool = False) -> list[str]:
    """The statements, for the owner of the tables, that give an existing role what it needs.

    A follower reads everything, and writes to the tables of replicas and what it measured alone.
    """
    to = '"' + role.replace('"', '""') + '"'
    names = ", ".join(sorted(tables.metadata.tables))
    reading = [
        f"GRANT USAGE ON SCHEMA public TO {to}",
        f"GRANT SELECT ON {names}, alembic_version TO {to}",
    ]
    reporting = f"GRANT UPDATE ON {_REPLICAS[0]} TO {to}"
    if follower:
        written = ", ".join((*_REPLICAS, _MEASURED))
        return [*reading, f"GRANT INSERT ON {written} TO {to}", reporting]
    return [
        *reading,
        f"GRANT INSERT ON {names} TO {to}",
        f"GRANT EXECUTE ON FUNCTION {redact_function.NAME}(bigint) TO {to}",
        *(f"GRANT UPDATE ({column}) ON {table} TO {to}" for table, column in _UPDATED.items()),
        reporting,
        f"GRANT DELETE ON {', '.join(_DELETED)} TO {to}",
    ]
