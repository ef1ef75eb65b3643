"""What work costs does not depend on how long the history is: counted, not timed.

On SQLite the instructions of its virtual machine are counted, which is every row that is looked at;
on both databases the statements and the rows that come back.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import replayable_log
from benchmarks.replayable_log import MODEL, SIDE
from tests.conftest import new_database
from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.blobs.location import open_blobs
from weightledger.ledger.history import versions
from weightledger.ledger.sql.database import Database
from weightledger.ledger.store import EventFilter
from weightledger.ledger.store.sql_store import SqlStore
from weightledger.ledger.writing.commands import Pin

SHORT, LONG = 2_000, 8_000
_EVERY = 20  # instructions between two counts


class Counting:
    """A backend that counts what the statements sent through it cost."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.statements = self.rows = self.instructions = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def executor(self, connection: Any) -> Any:
        run = self._backend.executor(connection)
        if hasattr(connection, "set_progress_handler"):
            connection.set_progress_handler(self._tick, _EVERY)

        def execute(sql: str, params: Sequence[Any] = (), /) -> Any:
            self.statements += 1
            return _Cursor(run(sql, params), self)

        return execute

    def _tick(self) -> int:
        self.instructions += _EVERY
        return 0

    def taken(self) -> dict[str, int]:
        """The counts since the last time."""
        names = ("statements", "rows", "instructions")
        taken = {name: getattr(self, name) for name in names}
        self.statements = self.rows = self.instructions = 0
        return taken


class _Cursor:
    def __init__(self, cursor: Any, counting: Counting) -> None:
        self._cursor, self._counting = cursor, counting
        self.rowcount = cursor.rowcount

    def fetchone(self) -> Any:
        self._counting.rows += 1
        return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        found: list[Any] = self._cursor.fetchall()
        self._counting.rows += len(found)
        return found

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchall())


@contextlib.contextmanager
def counted(url: str) -> Iterator[tuple[Ledger, Counting]]:
    database = Database.connect(url)
    counting = Counting(database.backend)
    blobs = open_blobs(None, database)
    database.backend = counting
    with Ledger(SqlStore(database, blobs)) as ledger:
        yield ledger, counting


def _step(log: Log, number: int) -> None:
    value = torch.full((SIDE, SIDE), float(number))
    log.apply(IncrementalUpdateRequest("a", value, update_type="replace"))


def costs(url: str, count: int) -> dict[str, dict[str, int]]:
    """What each piece of work costs on a log of this length."""
    found: dict[str, dict[str, int]] = {}
    other = {name: second for name, (_, second) in replayable_log.matrices().items()}

    def of(what: str, counting: Counting, work: Callable[[], object]) -> None:
        counting.taken()
        work()
        found[what] = counting.taken()

    with counted(url) as (ledger, counting):
        of("open", counting, lambda: ledger.model(MODEL))
    with counted(url) as (ledger, counting):
        of("open with other weights", counting, lambda: ledger.model(MODEL, base=other))
    with counted(url) as (ledger, counting):
        log = ledger.model(MODEL)
        history = log.history
        store = history.store
        middle = history.require(count // 2)
        old = store.by_number("versions", middle.counts.versions - 1)
        assert old is not None
        of("record", counting, lambda: _step(log, 1))
        before = log.live.head.seq
        for number in range(2, 12):
            _step(log, number)
        of("where ten back is named", counting, lambda: versions.nearest(store, before))
        of(
            "the way ten back",
            counting,
            lambda: history.ways.travel(before, lambda base, path: path),
        )
        log.rollback(f"seq:{before}")
        of("write a snapshot", counting, log.snapshot)
        of("name", counting, lambda: log.create_version("named"))
        newest = history.resolve("head").event.name
        of("pin", counting, lambda: log.execute(Pin(newest)))
        of("parameters", counting, history.parameters)
        of("an old state", counting, lambda: history.state(old.name))
        of("a state by digest", counting, lambda: store.by_state(middle.state_after))
        of("no state by digest", counting, lambda: store.by_state(bytes(32)))
        for number, where in enumerate(
            (
                EventFilter(),
                EventFilter(parameter="a", max_seq=middle.seq),
                EventFilter(since=middle.recorded_at),
                EventFilter(kinds=["rolled_back"]),
            )
        ):
            query = partial(store.select, where, limit=2)
            of(f"query {number}", counting, query)
    with counted(url) as (ledger, counting):
        log = ledger.model(MODEL)
        store, far = log.history.store, log.history.require(count - SHORT // 2).node
        of("where a far one is named", counting, lambda: versions.nearest(store, far))
        log.rollback(old.name)
        _step(log, 20)
    with counted(url) as (ledger, counting):
        of("open on a branch of it", counting, lambda: ledger.model(MODEL))
    return found


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("listed", [10, 1_000_000], ids=["ten versions", "every version"])
def test_work_costs_the_same_on_a_long_history(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, listed: int
) -> None:
    taken = []
    for count in (SHORT, LONG):
        folder = tmp_path / str(count)
        folder.mkdir()
        with new_database(request, kind, folder) as url:
            replayable_log.load(url, count, folder, listed=listed)
            taken.append(costs(url, count))
    short, long = taken
    grown = {
        (what, name): (short[what][name], cost)
        for what, of in long.items()
        for name, cost in of.items()
        if cost > 1.3 * short[what][name] + 4 * _EVERY
    }
    assert not grown


@pytest.mark.parametrize("told", [None, replayable_log.Told(2.0)], ids=["bare", "with texts"])
def test_a_log_made_for_measuring_is_sound(
    tmp_path: Path, told: replayable_log.Told | None
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    replayable_log.load(url, 1200, tmp_path, told=told)
    with Ledger.open(url) as ledger:
        report = verify(ledger.history(MODEL))
        assert (report.problem, report.events) == (None, 1200)
        assert report.states > 1100
