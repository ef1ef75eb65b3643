"""What is particular to PostgreSQL: connecting, its statements, locks and catalogue.

Values travel in binary form. Pipeline mode is used for turns only, whose events are small
(`ledger.sql.postgres_pipeline`), and `executemany`, which uses it, never: it hung with payloads of
a megabyte.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format, TransactionStatus
from sqlalchemy.exc import InvalidatePoolError

from weightledger.ledger.sql import postgres_sockets, redact_function, triggers
from weightledger.ledger.sql.advisory_slots import AdvisorySlots
from weightledger.ledger.sql.advisory_turns import AdvisoryLock
from weightledger.ledger.sql.backend import KEPT_CONNECTIONS, Cursor, Execute, KeyLists, Kind
from weightledger.ledger.sql.machine_turns import MachineLock
from weightledger.ledger.sql.notifications import Listener, Teller
from weightledger.ledger.sql.postgres_ahead import pages as pages
from weightledger.ledger.sql.postgres_alone import alone as alone
from weightledger.ledger.sql.postgres_alone import repeated
from weightledger.ledger.sql.postgres_failures import BY_STANDING_ALONE
from weightledger.ledger.sql.postgres_failures import by_standing_alone as by_standing_alone
from weightledger.ledger.sql.postgres_failures import explain as explain
from weightledger.ledger.sql.postgres_failures import is_full as is_full
from weightledger.ledger.sql.postgres_failures import is_lost as is_lost
from weightledger.ledger.sql.postgres_failures import is_quiet as is_quiet
from weightledger.ledger.sql.postgres_failures import withdraw as withdraw
from weightledger.ledger.sql.postgres_integrity import damage as damage
from weightledger.ledger.sql.postgres_integrity import protect as protect
from weightledger.ledger.sql.postgres_integrity import rebuild_indexes as rebuild_indexes
from weightledger.ledger.sql.postgres_integrity import unprotect as unprotect
from weightledger.ledger.sql.turns import Lock
from weightledger.ledger.sql.wakeups import Ear, Wakeups

BEGIN_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# Not READ WRITE: whoever makes the database read-only by its settings means us as well.
BEGIN_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"
NOW = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"
GREATEST = "greatest"
FOR_UPDATE = "FOR UPDATE"
# Bytes go through the server's memory, libpq's and ours: what stays in the processor's cache on the
# way costs a third less. They are stored as they are, so the server reads each slice by itself.
_SLICE_BYTES = 256 * 1024
SLICES = (
    " LEFT JOIN LATERAL"
    f" generate_series(0, greatest(octet_length(p.data) - 1, 0), {_SLICE_BYTES}) AS s(at) ON true"
)
SLICE = f"s.at, substr(p.data, s.at + 1, {_SLICE_BYTES})"
KEY_AGAIN = (
    "SELECT event_key FROM events"
    " WHERE md5(idempotency_key) = md5(?) AND model_id = ? AND idempotency_key IS NOT NULL"
)
ERRORS = (psycopg.Error,)
WRITES_ALONE = True
REDACT = redact_function.CALL

_MOST_CONNECTIONS = 64
_WAIT_S = 10.0
_SCHEMA_LOCK = 0x77656967  # "weig", in the database's own space of advisory locks

_ROUND_ABOUT = (
    "SELECT 'rule', r.rulename::text, c.relname::text FROM pg_rewrite r"
    " JOIN pg_class c ON c.oid = r.ev_class"
    " WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = ANY(?)"
    " UNION ALL SELECT 'row security', 'switched on', c.relname::text FROM pg_class c"
    " WHERE c.relnamespace = current_schema()::regnamespace AND c.relrowsecurity"
    " AND c.relname = ANY(?)"
    " UNION ALL SELECT 'table', h.relname::text, c.relname::text FROM pg_inherits i"
    " JOIN pg_class h ON h.oid = i.inhrelid JOIN pg_class c ON c.oid = i.inhparent"
    " WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = ANY(?)"
)


# Without them it waits for as long as the system resends, a quarter of an hour.
_PATIENCE = {
    "connect_timeout": 10,  # s
    "tcp_user_timeout": 30_000,  # ms
    "keepalives_idle": 30,  # s
    "keepalives_interval": 10,  # s
    "keepalives_count": 3,
}


def engine(url: sa.URL, *, create: bool, kept: int = KEPT_CONNECTIONS) -> sa.Engine:
    """An engine whose connections leave BEGIN to us and are looked at before use."""
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=kept,
        max_overflow=_MOST_CONNECTIONS - kept,
        pool_timeout=_WAIT_S,
        pool_reset_on_return=None,
        connect_args={"autocommit": True, **_patience(url)},
    )
    sa.event.listen(engine, "connect", lambda made, _: postgres_sockets.keep(made))
    sa.event.listen(engine, "checkout", _require_quiet)
    sa.event.listen(engine, "checkin", _require_idle)
    return engine


def _require_quiet(connection: Any, _record: object, _proxy: object) -> None:
    """Have the pool give another connection where the server has gone: trying it would take each
    question a round trip."""
    if not is_quiet(connection):
        raise InvalidatePoolError


def _require_idle(connection: Any, record: sa.pool.ConnectionPoolEntry) -> None:
    """Give up a connection that comes back in the middle of something, as from an interruption."""
    if connection is not None and connection.pgconn.transaction_status != TransactionStatus.IDLE:
        record.invalidate()


def _patience(url: sa.URL) -> dict[str, int]:
    """Of libpq's own bounds on a host that swallows packets, those that the URL does not have."""
    return {name: bound for name, bound in _PATIENCE.items() if name not in url.query}


def journal(engine: sa.Engine) -> None:
    """Nothing: the server looks after its own."""


def turns(engine: sa.Engine, model_id: int) -> Lock:
    """The lock that writers of a model take in turn, on a connection of its own."""
    return MachineLock(model_id, AdvisoryLock(_connecting(engine), model_id))


def slots(engine: sa.Engine, model_id: int, count: int, name: str) -> AdvisorySlots:
    """Slots of a model, on a connection of their own."""
    return AdvisorySlots(_connecting(engine), model_id, count, name)


def wakeups(engine: sa.Engine) -> Wakeups:
    """Telling and hearing of new events, each on a connection of its own, made when wanted."""
    connect = _connecting(engine)

    def ear(heard: Callable[[int | None], None], probing: bool) -> Ear:
        return Listener(connect, heard, probing)

    return Wakeups(lambda: Teller(connect), ear)


def changed(_execute: Execute) -> None:
    """Nobody says for less than the last seq costs."""


def _connecting(engine: sa.Engine) -> Callable[[], psycopg.Connection[Any]]:
    """What makes connections that are not the pool's."""

    def connect() -> psycopg.Connection[Any]:
        (args, options) = engine.dialect.create_connect_args(engine.url)
        options = {**options, "autocommit": True, **_patience(engine.url)}
        return postgres_sockets.keep(psycopg.connect(*args, **options))

    return connect


def version(execute: Execute) -> str:
    """The name and version of the server."""
    (number,) = execute("SELECT current_setting('server_version')").fetchone()
    return f"PostgreSQL {number}"


def place(execute: Execute) -> str:
    """The cluster and the database, by whatever host and name they are reached."""
    cluster, database = execute(
        "SELECT system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database())"
        " FROM pg_control_system()"
    ).fetchone()
    return f"{cluster}/{database}"


def executor(connection: Any) -> Execute:
    """How to run a statement on a driver connection; results come in binary form."""
    run = connection.execute

    def execute(sql: str, params: Sequence[Any] = (), /) -> Cursor:
        cursor: Cursor = run(sql.replace("?", "%s"), params, binary=True)
        return cursor

    return execute


def lender(connection: Any) -> Execute:
    """The same; bytes are views of what libpq read, so that they are not copied once more."""

    def execute(sql: str, params: Sequence[Any] = (), /) -> Cursor:
        cursor = connection.cursor(binary=True)
        cursor.adapters.register_loader("bytea", _Lent)
        lent: Cursor = cursor.execute(sql.replace("?", "%s"), params)
        return lent

    return execute


class _Lent(Loader):
    """Bytes as they lie in a result."""

    format = Format.BINARY

    def load(self, data: Buffer) -> Buffer:
        return data


def number(connection: Any, sql: str, params: Sequence[Any]) -> Callable[[], int]:
    """See `Backend.number`; a third of what the driver's cursor takes."""
    prepared: Callable[[], list[tuple[int, ...]]] | None = None

    def ask() -> int:
        nonlocal prepared
        try:
            if prepared is None:
                prepared = repeated(connection, sql, params)
            ((value,),) = prepared()
        except BY_STANDING_ALONE:
            prepared = None
            (value,) = executor(connection)(sql, params).fetchone()
        return int(value)

    return ask


def among(kind: Kind) -> str:
    """A comparison: is one of the values of one parameter made by `many`."""
    return f"= ANY(CAST(? AS {kind}[]))"


def each(kind: Kind) -> str:
    """A row source: every value of one parameter made by `many`, as v.value."""
    return f"unnest(CAST(? AS {kind}[])) AS v(value)"


def many(values: Sequence[Any]) -> list[Any]:
    """Values as the one parameter of `each`."""
    return list(values)


def first_of_each(
    execute: Execute, lists: KeyLists, bounds: tuple[int, int], limit: int, order: str
) -> list[int]:
    """One statement: planning a union of hundreds takes longer than reading it."""
    rows = execute(
        f"SELECT k.event_key FROM {each(lists.kind)}"
        f" CROSS JOIN LATERAL ({lists.one('v.value', order)}) AS k",
        (many(lists.values), *lists.given, *bounds, limit),
    )
    return [key for (key,) in rows]


def prepare(execute: Execute) -> None:
    """Nothing to do."""


def making(_url: sa.URL) -> AbstractContextManager[None]:
    """Nothing to do: tables are made in one transaction."""
    return contextlib.nullcontext()


def made(_url: sa.URL) -> None:
    """Nothing to do."""


def torn(_url: sa.URL) -> str | None:
    """Never: a database is whole."""
    return None


def lock_schema(execute: Execute) -> None:
    """Wait for the lock that whoever migrates this database holds until it commits."""
    execute("SELECT pg_advisory_xact_lock(?)", (_SCHEMA_LOCK,))


def table_names(execute: Execute) -> set[str]:
    """Every table of the current schema."""
    rows = execute("SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()")
    return {name for (name,) in rows}


def weaknesses(execute: Execute) -> list[str]:
    """What is missing or changed of the triggers and unique indexes, and what goes round them.

    A rule, a trigger of someone else's or row security can swallow or hide rows; rows of a table
    that inherits are read as the log's and have no triggers.
    """
    rows = execute(
        "SELECT t.tgname::text, c.relname::text, t.tgtype::int, p.prosrc,"
        " t.tgenabled = 'A' AND t.tgqual IS NULL AND t.tgattr::text = ''"
        " FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
        " JOIN pg_proc p ON p.oid = t.tgfoid"
        " WHERE NOT t.tgisinternal AND c.relnamespace = current_schema()::regnamespace"
    )
    found = {name: tuple(rest) for name, *rest in rows}
    ours = triggers.postgres_triggers()
    weak = [
        f"trigger {name} is missing or was changed"
        for name, trigger in ours.items()
        if found.get(name) != (trigger.table, trigger.shape, trigger.body, True)
    ]
    weak += [
        f"trigger {name} on {table} is not the ledger's"
        for name, (table, *_) in found.items()
        if name not in ours and table in triggers.PROTECTED
    ]
    unique = execute(
        "SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE i.indisunique AND i.indisvalid"
        " AND c.relnamespace = current_schema()::regnamespace"
    )
    redacting = redact_function.weakness(execute)
    weak += [redacting] if redacting else []
    missing = set(triggers.POSTGRES_UNIQUE) - {name for (name,) in unique}
    weak += [f"unique index {name} is missing" for name in sorted(missing)]
    return weak + [
        f"{what} {name} on {table} is not the ledger's"
        for what, name, table in (execute(_ROUND_ABOUT, (list(triggers.PROTECTED),) * 3))
    ]


def stream(connection: Any, sql: str, rows: int) -> Iterator[Sequence[Any]]:
    """The rows of a query, by a cursor of the server's."""
    with connection.cursor(name="weightledger_rows") as cursor:
        cursor.itersize = rows
        cursor.execute(sql, binary=True)
        yield from cursor


def renumber(execute: Execute, counted: Sequence[tuple[str, str]]) -> None:
    """Set the sequences behind identity columns."""
    for table, column in counted:
        execute(
            f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'), max({column}))"
            f" FROM {table} HAVING max({column}) IS NOT NULL"
        )
