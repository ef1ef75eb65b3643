"""What someone may try on a database, as whom, and what comes of it, as docs/security.md says."""

from dataclasses import dataclass

REFUSED = "refused by a trigger"
DENIED = "permission denied"
AT_START = "done; noticed at start and by verify"
BY_VERIFY = "done; noticed by verify"
ELSEWHERE = "—"

SQLITE, OWNER, SERVER = "SQLite file", "PostgreSQL owner", "PostgreSQL server role"
ROLES = (SQLITE, OWNER, SERVER)


@dataclass(frozen=True)
class Attack:
    """Statements in autocommit mode, and what comes of the last one for each role."""

    name: str
    statements: tuple[str, ...]
    sqlite: str = ELSEWHERE
    owner: str = ELSEWHERE
    server: str = ELSEWHERE

    def outcome(self, role: str) -> str:
        return {SQLITE: self.sqlite, OWNER: self.owner, SERVER: self.server}[role]


_COPY = (
    "SELECT {key}, model_id, kind, recorded_at, node, parent, changes_state, forward_only,"
    " NULL, NULL, NULL, state_after, payload_size, header, event_hash, payload FROM events"
    " WHERE event_key = (SELECT max(event_key) FROM events)"
)
_COPIED = _COPY.format(key="event_key")
_NEXT = f"INSERT INTO events {_COPY.format(key='event_key + 1')}"
_GAP = f"INSERT INTO events {_COPY.format(key='event_key + 7')}"
_REPLICA = "SET session_replication_role = replica"
_NO_RECURSION = "PRAGMA recursive_triggers = OFF"
_REWRITE = "UPDATE events SET header = substr(header, 1, 40)"
_SWALLOW = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
_BOTH = {"sqlite": REFUSED, "owner": REFUSED, "server": DENIED}
_DDL = {"owner": AT_START, "server": DENIED}

ATTACKS = (
    Attack("UPDATE a column", ("UPDATE events SET recorded_at = 0",), **_BOTH),
    Attack("UPDATE a key", ("UPDATE events SET event_key = event_key + 9",), **_BOTH),
    Attack("UPDATE a note", ("UPDATE annotations SET reason = 'better'",), **_BOTH),
    Attack("DELETE", ("DELETE FROM events WHERE number = 1",), **_BOTH),
    Attack("DELETE everything", ("DELETE FROM events",), **_BOTH),
    Attack("TRUNCATE", ("TRUNCATE events CASCADE",), owner=REFUSED, server=DENIED),
    Attack("INSERT OR REPLACE", (f"INSERT OR REPLACE INTO events {_COPIED}",), sqlite=REFUSED),
    Attack(
        "INSERT OR REPLACE, `recursive_triggers = OFF`",
        (_NO_RECURSION, f"INSERT OR REPLACE INTO events {_COPIED}"),
        sqlite=REFUSED,
    ),
    Attack(
        "INSERT … ON CONFLICT DO UPDATE",
        (
            f"INSERT INTO events {_COPIED} ON CONFLICT (event_key)"
            " DO UPDATE SET kind = 'update_rejected'",
        ),
        **_BOTH,
    ),
    Attack("INSERT behind a gap", (_GAP,), sqlite=REFUSED, owner=REFUSED, server=REFUSED),
    Attack(
        "INSERT a forged next event", (_NEXT,), sqlite=BY_VERIFY, owner=BY_VERIFY, server=BY_VERIFY
    ),
    Attack(
        "DELETE, `session_replication_role = replica`",
        (_REPLICA, "DELETE FROM events"),
        owner=REFUSED,
        server=DENIED,
    ),
    Attack(
        "DISABLE TRIGGER, then UPDATE",
        ("ALTER TABLE events DISABLE TRIGGER ALL", _REWRITE),
        **_DDL,
    ),
    Attack(
        "DROP TRIGGER",
        ("DROP TRIGGER events_append_only ON events",),
        owner=AT_START,
        server=DENIED,
    ),
    Attack("DROP TRIGGER (SQLite)", ("DROP TRIGGER events_no_update",), sqlite=AT_START),
    Attack(
        "replace a trigger's function",
        (
            "CREATE OR REPLACE FUNCTION weightledger_refuse() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN RETURN NULL; END'",
        ),
        **_DDL,
    ),
    Attack(
        "CREATE RULE … DO INSTEAD NOTHING",
        ("CREATE RULE r AS ON INSERT TO events DO INSTEAD NOTHING",),
        **_DDL,
    ),
    Attack(
        "a trigger that swallows rows",
        (
            _SWALLOW,
            "CREATE TRIGGER a BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION swallow()",
        ),
        **_DDL,
    ),
    Attack(
        "a trigger that swallows rows (SQLite)",
        ("CREATE TRIGGER a BEFORE INSERT ON events BEGIN SELECT RAISE(IGNORE); END",),
        sqlite=AT_START,
    ),
    Attack(
        "row security that hides rows", ("ALTER TABLE events ENABLE ROW LEVEL SECURITY",), **_DDL
    ),
    Attack("a table that inherits", ("CREATE TABLE more () INHERITS (events)",), **_DDL),
    Attack("DROP INDEX of the idempotency keys", ("DROP INDEX events_idempotency",), **_DDL),
    Attack(
        "DROP TABLE",
        ("DROP TABLE touches",),
        sqlite=AT_START,
        **_DDL,
    ),
    Attack(
        "`writable_schema`: triggers out of the catalogue",
        ("PRAGMA writable_schema = ON", "DELETE FROM sqlite_master WHERE type = 'trigger'"),
        sqlite=AT_START,
    ),
    Attack("edit the file", ("",), sqlite=BY_VERIFY),
    Attack(
        "DELETE from the list of versions",
        ("DELETE FROM listed_versions",),
        sqlite=BY_VERIFY,
        owner=BY_VERIFY,
        server=BY_VERIFY,
    ),
    Attack(
        "DELETE a blob that is needed",
        ("DELETE FROM blob_parts",),
        sqlite=BY_VERIFY,
        owner=BY_VERIFY,
        server=BY_VERIFY,
    ),
)


def table() -> str:
    """The table as the page shows it."""
    lines = [f"| Attempt | {' | '.join(ROLES)} |", "|---|---|---|---|"]
    for attack in ATTACKS:
        outcomes = " | ".join(attack.outcome(role) for role in ROLES)
        lines.append(f"| {attack.name} | {outcomes} |")
    return "\n".join(lines)
