"""What turns cost by themselves: processes that take the same locks and run the same statements.

They do with a bare driver what no writer of one log can do without: wait for the turn, read what
the others wrote, write one event that follows it, and give the turn on. Nothing is decoded, worked
out or shown, and the events are copies of one of ours.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import torch
from psycopg import pq

from benchmarks.small_updates import Statement, recorded
from weightledger import IncrementalUpdateRequest
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.sql.postgres_alone import binary, numbered
from weightledger.ledger.sql.sqlite_driver import driver as sqlite3
from weightledger.ledger.store import news_rows, rows
from weightledger.ledger.store.small_events import _one

_SEQ, _NUMBER = ("event_key", "node", "parent"), "number"
_COLUMN = {name: at for at, name in enumerate(rows.COLUMNS)}
_PAGE = 256
_LOCK = b"SELECT pg_advisory_xact_lock(1, 1)"


def one_update(url: str, side: int) -> list[Statement]:
    """The statements of an update of side x side fp32, in a database that now has its model."""
    ledger, recording = recorded(url)
    with ledger:
        log = ledger.model("bare", base={"w": torch.zeros(side, side)})
        for _ in range(3):
            log.apply(IncrementalUpdateRequest("w", torch.ones(side, side)))
    return [one for one in recording.taken() if one[0].startswith("INSERT")][-2:]


def take_turns(url: str, ready: Any, seconds: float, update: list[Statement]) -> tuple[float, ...]:
    """Write for so long, from when every process is ready; milliseconds of each turn."""
    turns = _sqlite if url.startswith("sqlite") else _postgres
    took = []
    with turns(url, update) as turn:
        ready.wait()
        until = time.perf_counter() + seconds
        while (started := time.perf_counter()) < until:
            turn()
            took.append((time.perf_counter() - started) * 1000)
    return tuple(took)


def _row(update: list[Statement], key: int) -> list[Any]:
    """The values of the event with this key, and of what counts it behind them."""
    (_, event), (_, (_, actor, ids)) = update
    later = key - event[0]
    row = list(event)
    for name in (*_SEQ, _NUMBER):
        row[_COLUMN[name]] += later
    return [*row, actor, ids]


@contextmanager
def _sqlite(url: str, update: list[Statement]) -> Iterator[Any]:
    """Two file locks as in `ledger.sql.file_turns`, and one connection."""
    path = url.removeprefix("sqlite:///")
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("synchronous = FULL", "foreign_keys = ON", "recursive_triggers = ON"):
        connection.execute(f"PRAGMA {pragma}")
    run = connection.execute
    next_lock, lock = (os.open(f"{path}-{name}", os.O_RDWR | os.O_CREAT) for name in ("n", "t"))
    (insert, (key, *_)), (count, _) = update

    def turn() -> None:
        nonlocal key
        fcntl.flock(next_lock, fcntl.LOCK_EX)
        fcntl.flock(lock, fcntl.LOCK_EX)
        fcntl.flock(next_lock, fcntl.LOCK_UN)
        while news := run(news_rows._NEWS, (key + 1, key | SEQ_MASK, _PAGE)).fetchall():
            key += len(news)
        key += 1
        *row, actor, ids = _row(update, key)
        run("BEGIN IMMEDIATE")
        run(insert, row)
        run(count, (key, actor, ids))
        run("COMMIT")
        fcntl.flock(lock, fcntl.LOCK_UN)

    try:
        yield turn
    finally:
        connection.close()
        os.close(next_lock)
        os.close(lock)


@contextmanager
def _postgres(url: str, update: list[Statement]) -> Iterator[Any]:
    """One connection and two messages: the lock with what is new, and the event with the commit,
    by which the lock goes."""
    (_, (key, *_)), _ = update
    source = "(SELECT CAST(? AS bigint) AS value) AS v"
    between = "BETWEEN CAST(? AS bigint) AND CAST(? AS bigint)"
    news = news_rows._NEWS.replace("BETWEEN ? AND ?", between).replace("LIMIT ?", f"LIMIT {_PAGE}")
    with psycopg.connect(url, autocommit=True) as connection:
        server = connection.pgconn
        server.prepare(b"lock", _LOCK)
        server.prepare(b"news", numbered(news))
        server.prepare(b"write", numbered(_one(source, None, noted=False)))
        server.enter_pipeline_mode()

        def send(name: bytes, values: list[Any]) -> None:
            server.send_query_prepared(name, binary(values), [1] * len(values), 1)

        def answer() -> Any:
            kept = None
            while (result := server.get_result()) is not None:
                if result.status == pq.ExecStatus.FATAL_ERROR:
                    raise psycopg.errors.error_from_result(result)
                kept = result
                if result.status == pq.ExecStatus.PIPELINE_SYNC:
                    break
            return kept

        def read_news() -> int:
            send(b"news", [key + 1, key | SEQ_MASK])
            server.send_flush_request()
            server.flush()
            return int(answer().ntuples)

        def turn() -> None:
            nonlocal key
            send(b"lock", [])
            server.send_flush_request()
            send(b"news", [key + 1, key | SEQ_MASK])
            server.send_flush_request()
            server.flush()
            answer()
            key += (count := int(answer().ntuples))
            while count == _PAGE:
                key += (count := read_news())
            key += 1
            send(b"write", _row(update, key))
            server.pipeline_sync()
            server.flush()
            answer()
            answer()

        yield turn
