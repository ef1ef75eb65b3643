"""Small updates: a kilobyte each, one by one and in batches, applied and durable.

    python -m benchmarks.small_updates [--rounds N]

On SQLite (synchronous FULL) and PostgreSQL, beside a bare driver that runs the very statements that
ours sent, with the same values on the same schema, and beside the `eventsourcing` library with
events of the same size. The statements are kept by a second ledger that writes the same updates and
is not timed, for keeping them takes a tenth of an update. The rounds take turns; the machine's own
limits are measured in them.
"""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import torch
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from psycopg.conninfo import conninfo_to_dict

from benchmarks.audit import databases
from benchmarks.measure import Report, interleaved
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.blobs.location import open_blobs
from weightledger.ledger.sql.backend import Backend, Cursor, Execute
from weightledger.ledger.sql.database import Database
from weightledger.ledger.sql.schema import open_schema
from weightledger.ledger.sql.sqlite_driver import driver as sqlite3
from weightledger.ledger.sql.turns import Lock
from weightledger.ledger.store import rows, touches
from weightledger.ledger.store.sql_store import SqlStore
from weightledger.ledger.tensors.digest import content_digest

SIDE = 16  # a kilobyte of fp32
BATCH = 1000
PAGE = 500  # events that are read together
EACH = 50  # updates of one round
SHARE = {"sqlite": 0.5, "postgresql": 0.9}  # of the bare driver's rate with the same statements

Statement = tuple[str, tuple[Any, ...]]


def plain(sql: str, params: Sequence[Any], backend: Backend) -> list[Statement]:
    """The statements that a single one of ours stands for: the event's row, and its touches."""
    assert " annotations " not in sql
    row, (actor, ids) = params[:-2], params[-2:]
    source, its = touches.source(backend, ids if isinstance(ids, list) else [ids])
    return [(rows.INSERT, tuple(row)), (touches.counting(source), (row[0], actor, its))]


class Recording:
    """A backend that keeps the statements of every write transaction, as they are sent."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.sent: list[Statement] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def executor(self, connection: Any) -> Execute:
        run = self._backend.executor(connection)
        begin, sent = self._backend.BEGIN_WRITE, self.sent
        writing = False

        def execute(sql: str, params: Sequence[Any] = (), /) -> Cursor:
            nonlocal writing
            writing = writing or sql == begin
            if writing:
                sent.append((sql, tuple(params)))
            writing = writing and sql != "COMMIT"
            return run(sql, params)

        return execute

    def alone(self, connection: Any, sql: str, params: Sequence[Any]) -> list[tuple[int, ...]]:
        self._keep_alone(sql, params)
        return self._backend.alone(connection, sql, params)

    def turns(self, engine: Any, model_id: int) -> Lock:
        """A lock whose last statements of a turn are kept as well."""
        lock: Any = self._backend.turns(engine, model_id)
        write = lock.write

        def kept(statements: Sequence[Statement]) -> Any:
            for sql, params in statements:
                self._keep_alone(sql, params)
            return write(statements)

        lock.write = kept
        return lock  # type: ignore[no-any-return]

    def _keep_alone(self, sql: str, params: Sequence[Any]) -> None:
        backend = self._backend
        self.sent += ((backend.BEGIN_WRITE, ()), *plain(sql, params, backend), ("COMMIT", ()))

    def taken(self) -> list[Statement]:
        """What was sent since the last time."""
        taken, self.sent[:] = list(self.sent), []
        return taken


def recorded(url: str) -> tuple[Ledger, Recording]:
    """A ledger in an empty database, and the record of what it writes after its tables."""
    database = Database.connect(url)
    recording = Recording(database.backend)
    open_schema(database)
    blobs = open_blobs(None, database)
    database.backend = recording
    store = SqlStore(database, blobs)
    return Ledger(store), recording


@dataclass
class Bare:
    """A driver's connection to a database with the same tables, which runs what ours sent."""

    run: Callable[..., Any]
    mark: str
    options: dict[str, Any] = field(default_factory=dict)

    def prepared(self, statements: Sequence[Statement]) -> list[Statement]:
        """The statements in the driver's own notation."""
        return [(sql.replace("?", self.mark), params) for sql, params in statements]

    def replay(self, statements: Sequence[Statement]) -> None:
        run, options = self.run, self.options
        for sql, params in statements:
            run(sql, params, **options)


@contextlib.contextmanager
def bare(url: str) -> Iterator[Bare]:
    """A bare connection to a database that gets our tables, with the settings that ours have."""
    SqlStore.open(url).close()
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///")
        options = {"isolation_level": None, "check_same_thread": False}
        with contextlib.closing(sqlite3.connect(path, **options)) as plain:
            for pragma in ("synchronous = FULL", "foreign_keys = ON", "recursive_triggers = ON"):
                plain.execute(f"PRAGMA {pragma}")
            yield Bare(plain.execute, "?")
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            yield Bare(connection.execute, "%s", {"binary": True})


class Weights(Aggregate):
    """One model as a peer sees it: updates are bytes."""

    @event("Updated")
    def update(self, payload: str) -> None:
        self.payload = payload


@contextlib.contextmanager
def peer(url: str) -> Iterator[Application[Any]]:
    """The `eventsourcing` library on a database of its own; as durable as ours by default."""
    if url.startswith("sqlite"):
        settings = {
            "PERSISTENCE_MODULE": "eventsourcing.sqlite",
            "SQLITE_DBNAME": url.removeprefix("sqlite:///"),
        }
    else:
        at = conninfo_to_dict(url)
        settings = {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": str(at["dbname"]),
            "POSTGRES_HOST": str(at["host"]),
            "POSTGRES_PORT": str(at.get("port") or ""),
            "POSTGRES_USER": str(at["user"]),
            "POSTGRES_PASSWORD": str(at.get("password") or "unused"),
        }
    application: Application[Any] = Application(env=settings)
    try:
        yield application
    finally:
        application.close()


def one_by_one(report: Report, kind: str, urls: dict[str, str], rounds: int, folder: Path) -> None:
    """A thousand bytes of operand an update, each its own event and transaction."""
    requests = [IncrementalUpdateRequest("w", torch.randn(SIDE, SIDE), 0.001) for _ in range(EACH)]
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(urls["ours"]))
        twin, recording = recorded(urls["twin"])
        stack.callback(twin.close)
        driver = stack.enter_context(bare(urls["bare"]))
        library = stack.enter_context(peer(urls["peer"]))
        file = stack.enter_context((folder / f"limit-{kind}").open("wb"))
        base = {"w": torch.randn(SIDE, SIDE)}
        log, kept = ledger.model("small", base=base), twin.model("small", base=base)
        for request in requests:
            log.apply(request)
            kept.apply(request)
        # Everything up to here, so that both databases stand at the same event.
        for sql, params in driver.prepared(recording.taken()):
            cursor = driver.run(sql, params, **driver.options)
            if "RETURNING" in sql:
                cursor.fetchall()
        size = round(sum(e.payload_size for e in log.events(limit=EACH)) / EACH)
        text = "x" * size
        aggregate = Weights()
        library.save(aggregate)
        waiting: list[Statement] = []

        def ours(_: int) -> None:
            for request in requests:
                log.apply(request)

        def turn(_: int) -> None:
            for request in requests:
                kept.apply(request)
            waiting[:] = driver.prepared(recording.taken())

        def theirs(_: int) -> None:
            for _ in range(EACH):
                aggregate.update(text)
                library.save(aggregate)

        def synced(_: int) -> None:
            for _ in range(EACH):
                file.write(bytes(size))
                file.flush()
                os.fsync(file.fileno())

        medians = interleaved(
            rounds,
            ours=ours,
            turn=turn,
            bare=lambda _: driver.replay(waiting),
            theirs=theirs,
            synced=synced,
        )
        statements, goal = len(waiting) / EACH, SHARE[kind]
        rate = {name: EACH / took for name, took in medians.items()}
        report.add(f"{kind}: limit: write and sync {size:,} bytes", rate["synced"], "/s")
        report.add(
            f"{kind}: small updates one by one, {size:,} bytes of payload",
            rate["ours"],
            "/s",
            ratio=rate["ours"] / rate["bare"],
            of="bare",
            goal=f"≥ {goal:.0%} of bare",
            ok=rate["ours"] >= goal * rate["bare"],
        )
        report.add(f"{kind}: bare driver, the same {statements:.0f} statements", rate["bare"], "/s")
        report.add(
            f"{kind}: eventsourcing, events of the same payload",
            rate["theirs"],
            "/s",
            ratio=rate["theirs"] / rate["ours"],
            of="ours",
        )
        reading(report, kind, log, library, aggregate)


def reading(
    report: Report, kind: str, log: Log, library: Application[Any], aggregate: Weights
) -> None:
    """Every event with its payload, in order, as objects."""
    history = log.history
    last = history.head().seq
    there = sum(1 for _ in library.events.get(aggregate.id))

    def ours(_: int) -> None:
        seq = -1
        while page := history.store.news(seq, PAGE):
            seq = page[-1][0].seq

    def events_only(_: int) -> None:
        for _one in history.store.scan(0, last + 1):
            pass

    def theirs(_: int) -> None:
        for _one in library.events.get(aggregate.id):
            pass

    medians = interleaved(5, ours=ours, events_only=events_only, theirs=theirs)
    rate = (last + 1) / medians["ours"]
    report.add(
        f"{kind}: read events and payloads, digests checked",
        rate,
        "/s",
        goal="≥ 100,000/s",
        ok=rate >= 100_000,
    )
    report.add(f"{kind}: read events alone", (last + 1) / medians["events_only"], "/s")
    report.add(
        f"{kind}: eventsourcing, read its events",
        there / medians["theirs"],
        "/s",
        ratio=there / medians["theirs"] / rate,
        of="ours",
    )


def batches(report: Report, kind: str, url: str, plain_url: str, rounds: int) -> None:
    """A thousand small updates of one matrix in each event, beside rows of that size."""
    updates = [IncrementalUpdateRequest("w", torch.randn(SIDE, SIDE), 0.001) for _ in range(BATCH)]
    operand = bytes(4 * SIDE * SIDE)
    with Ledger.open(url) as ledger, bare(plain_url) as driver:
        log = ledger.model("batches", base={"w": torch.randn(SIDE, SIDE)})
        column = "BLOB" if driver.mark == "?" else "BYTEA"
        driver.run(f"CREATE TABLE small (n BIGINT PRIMARY KEY, data {column})")
        insert = f"INSERT INTO small VALUES ({driver.mark}, {driver.mark})"

        def rows(turn: int) -> None:
            driver.run("BEGIN")
            for number in range(BATCH):
                driver.run(insert, (turn * BATCH + number, operand), **driver.options)
            driver.run("COMMIT")

        def hashing(_: int) -> None:
            for _ in range(BATCH):
                content_digest(operand)

        def ours(_: int) -> None:
            log.apply_batch(updates)

        medians = interleaved(rounds, ours=ours, rows=rows, hashing=hashing)
    rate = BATCH / medians["ours"]
    report.add(f"{kind}: limit: hash a kilobyte", BATCH / medians["hashing"], "/s")
    report.add(
        f"{kind}: small updates, a thousand in each event",
        rate,
        "/s",
        goal="≥ 60,000/s",
        ok=rate >= 60_000,
    )
    bare_rate = BATCH / medians["rows"]
    report.add(
        f"{kind}: bare driver, rows of a kilobyte, a thousand in a transaction",
        bare_rate,
        "/s",
        ratio=bare_rate / rate,
        of="ours",
    )


def own_databases(kind: str, url: str, folder: Path) -> Callable[[str], str]:
    """Gives the URL of a new, empty database by name."""

    def made(name: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{folder / name}.db"
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(f'CREATE DATABASE "{name}"')
        return url.replace("/postgres?", f"/{name}?")

    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    torch.manual_seed(0)
    report = Report("Small updates (a kilobyte of operand), applied and durable")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with databases(folder) as servers:
            for kind, url in servers.items():
                made = own_databases(kind, url, folder)
                urls = {who: made(who) for who in ("ours", "twin", "bare", "peer")}
                one_by_one(report, kind, urls, given.rounds, folder)
                batches(report, kind, made("batches"), made("rows"), max(4, given.rounds // 3))
    report.finish("small_updates")


if __name__ == "__main__":
    main()
