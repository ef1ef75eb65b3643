"""The triggers that make the log append-only and gapless; one definition for making and checking.

Updating, deleting and truncating are refused. On SQLite a BEFORE INSERT trigger refuses keys that
exist as well: INSERT OR REPLACE deletes without firing a DELETE trigger unless the connection asks
for recursive triggers, and a connection from elsewhere does not.
"""

from dataclasses import dataclass

from weightledger.ledger.sql import redact_function
from weightledger.ledger.sql.layout import SEQ_MASK

# Messages with which the database refuses; `ledger.sql.refusals` tells them apart.
GAP = "weightledger: this seq does not follow the last event"
SEQ_TAKEN = "weightledger: this seq is taken"
KEY_TAKEN = "weightledger: this idempotency key is taken"
NUMBER_TAKEN = "weightledger: this number of the series is taken"
MODEL_TAKEN = "weightledger: this model is registered"
ROW_TAKEN = "weightledger: this row exists"
CHANGE_TAKEN = "weightledger: this change of a key exists"
APPEND_ONLY = "weightledger: append-only, rows are never changed or removed"

# Rows of these tables are never changed or removed, and when a new row would replace one.
_SAME_ROW = {
    "models": ((MODEL_TAKEN, "model_id = NEW.model_id OR name = NEW.name"),),
    "events": (
        (SEQ_TAKEN, "event_key = NEW.event_key"),
        (KEY_TAKEN, "model_id = NEW.model_id AND idempotency_key = NEW.idempotency_key"),
        (
            NUMBER_TAKEN,
            "model_id = NEW.model_id AND series = NEW.series AND number = NEW.number",
        ),
    ),
    "annotations": ((ROW_TAKEN, "event_key = NEW.event_key"),),
    "parameters": (
        (ROW_TAKEN, "parameter_id = NEW.parameter_id"),
        (ROW_TAKEN, "model_id = NEW.model_id AND name = NEW.name"),
    ),
    "touches": ((ROW_TAKEN, "parameter_id = NEW.parameter_id AND event_key = NEW.event_key"),),
    "replica_states": (
        (
            ROW_TAKEN,
            "model_id = NEW.model_id AND replica = NEW.replica"
            " AND incarnation = NEW.incarnation AND number = NEW.number",
        ),
    ),
    "api_key_changes": ((CHANGE_TAKEN, "name = NEW.name AND number = NEW.number"),),
}

PROTECTED = tuple(_SAME_ROW)  # the tables whose rows stay as they are

_NO_PREDECESSOR = (
    f"(NEW.event_key & {SEQ_MASK}) <> 0"
    " AND NOT EXISTS (SELECT 1 FROM events WHERE event_key = NEW.event_key - 1)"
)


def sqlite_triggers() -> dict[str, str]:
    """Name and CREATE statement of each trigger on SQLite."""
    made: dict[str, str] = {}
    for table, same_row in _SAME_ROW.items():
        for action in ("UPDATE", "DELETE"):
            name = f"{table}_no_{action.lower()}"
            made[name] = (
                f"CREATE TRIGGER {name} BEFORE {action} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END"
            )
        checks = [
            f"SELECT RAISE(ABORT, '{message}') WHERE EXISTS (SELECT 1 FROM {table} WHERE {same});"
            for message, same in same_row
        ]
        if table == "events":
            checks.insert(0, f"SELECT RAISE(ABORT, '{GAP}') WHERE {_NO_PREDECESSOR};")
        name = f"{table}_no_replace"
        made[name] = f"CREATE TRIGGER {name} BEFORE INSERT ON {table} BEGIN {' '.join(checks)} END"
    return made


@dataclass(frozen=True, slots=True)
class PostgresTrigger:
    """A trigger on PostgreSQL; `shape` is its `pg_trigger.tgtype`, `body` its function's text."""

    name: str
    table: str
    when: str
    shape: int
    function: str
    body: str


# Bits of pg_trigger.tgtype: row 1, before 2, insert 4, delete 8, update 16, truncate 32.
_BEFORE_CHANGE = 2 | 8 | 16 | 32
_BEFORE_INSERT_ROW = 1 | 2 | 4

# What makes a seq, a key, a number and a name unique; on SQLite triggers do so as well.
POSTGRES_UNIQUE = (
    *(f"{table}_pkey" for table in PROTECTED),
    "events_idempotency",
    "events_number",
    "models_name",
    "parameters_name",
)

_REFUSE_BODY = f" BEGIN RAISE EXCEPTION '{APPEND_ONLY}'; END "
_FOLLOW_BODY = f" BEGIN IF {_NO_PREDECESSOR} THEN RAISE EXCEPTION '{GAP}'; END IF; RETURN NEW; END "


def postgres_triggers() -> dict[str, PostgresTrigger]:
    """Each trigger on PostgreSQL, by name."""
    made = [
        PostgresTrigger(
            name=f"{table}_append_only",
            table=table,
            when="BEFORE UPDATE OR DELETE OR TRUNCATE ON {} FOR EACH STATEMENT",
            shape=_BEFORE_CHANGE,
            function="weightledger_refuse",
            body=_REFUSE_BODY,
        )
        for table in _SAME_ROW
    ]
    made.append(
        PostgresTrigger(
            name="events_follow",
            table="events",
            when="BEFORE INSERT ON {} FOR EACH ROW",
            shape=_BEFORE_INSERT_ROW,
            function="weightledger_follow",
            body=_FOLLOW_BODY,
        )
    )
    return {trigger.name: trigger for trigger in made}


def functions(dialect: str) -> list[str]:
    """The names of the ledger's functions, for "sqlite" or "postgresql"."""
    if dialect == "sqlite":
        return []
    called = {trigger.function for trigger in postgres_triggers().values()}
    return sorted({*called, redact_function.NAME})


def statements(dialect: str) -> list[str]:
    """The DDL that makes every trigger and function, for "sqlite" or "postgresql"."""
    if dialect == "sqlite":
        return list(sqlite_triggers().values())
    made = postgres_triggers().values()
    functions = {trigger.function: trigger.body for trigger in made}
    ddl = [
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"
        for name, body in functions.items()
    ]
    for trigger in made:
        when = trigger.when.format(trigger.table)
        ddl.append(f"CREATE TRIGGER {trigger.name} {when} EXECUTE FUNCTION {trigger.function}()")
        # ALWAYS: session_replication_role = replica does not switch it off.
        ddl.append(f"ALTER TABLE {trigger.table} ENABLE ALWAYS TRIGGER {trigger.name}")
    return [*ddl, *redact_function.STATEMENTS]
