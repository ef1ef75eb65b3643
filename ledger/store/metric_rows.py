"""Rows of what was measured of one model: added, read, merged into fewer, dropped.

They are no part of the log. Rows are only ever inserted and deleted, so any number of processes may
add to the same span of time; whoever reads puts rows of the same span together.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from weightledger.ledger.sql.bulk import insert_rows, marks, pieces
from weightledger.ledger.sql.database import Database

MOST_ROWS = 1000
"""Rows of a rollout that are read at once."""


class MetricRow(NamedTuple):
    """The values of one metric from one source in `[start_us, end_us)`, observed at `first_seq` to
    `last_seq`; `sketch` is `monitoring.sketches.Sketch.encode`'s. The rest is
    `monitoring.rollups.Rollup`'s."""

    metric: str
    source: str
    first_seq: int
    last_seq: int
    start_us: int
    end_us: int
    samples: int
    total: float
    squares: float
    least: float
    most: float
    sketch: bytes
    replica: str | None = None
    rollout: int | None = None


class MetricStore(Protocol):
    """The port: what monitoring asks of a store."""

    def add(self, rows: Sequence[MetricRow]) -> None:
        """Make rows durable, all of them or none."""

    def push(
        self,
        samples: Sequence[tuple[bytes, int]],
        rows: Callable[[Sequence[bool]], list[MetricRow]],
    ) -> list[bool]:
        """Note samples that were pushed, given by digest and time, and add the rows that `rows`
        makes of which of them are new, in one transaction; gives which are."""

    def select(
        self,
        metrics: Sequence[str] = (),
        sources: Sequence[str] = (),
        *,
        min_seq: int | None = None,
        max_seq: int | None = None,
        since_us: int | None = None,
        until_us: int | None = None,
        replicas: Sequence[str] = (),
        own: bool = False,
    ) -> list[MetricRow]:
        """Rows that reach into `[min_seq, max_seq]` and `[since_us, until_us)`, oldest first; with
        `own` only those of no replica."""

    def of_rollout(
        self, rollout: int, metrics: Sequence[str], after: int
    ) -> list[tuple[int, MetricRow]]:
        """The next rows of a rollout behind one, at most `MOST_ROWS`, each with its number."""

    def spans(self, width_us: int, before_us: int, limit: int) -> list[int]:
        """Starts of spans of that width, all before a time, that have rows of shorter ones."""

    def merge(
        self, start_us: int, width_us: int, into: Callable[[list[MetricRow]], list[MetricRow]]
    ) -> int:
        """Replace the shorter rows of a span by what `into` makes of them; how many there were."""

    def drop(self, before_us: int) -> int:
        """Forget what ended before a time, and pushes of before it; how many rows that were."""


_MOST = (1 << 63) - 1  # what databases have numbers for
_COLUMNS = ", ".join(MetricRow._fields)
_INTO = f"metric_rollups (model_id, {_COLUMNS})"
_SELECT = f"SELECT {_COLUMNS} FROM metric_rollups WHERE model_id = ?"
_OF_ROLLOUT = (
    f"SELECT rollup_id, {_COLUMNS} FROM metric_rollups"
    " WHERE model_id = ? AND rollout = ? AND rollup_id > ? AND metric IN ({})"
    f" ORDER BY rollup_id LIMIT {MOST_ROWS}"
)
_SHORTER = "model_id = ? AND start_us >= ? AND start_us < ? AND end_us - start_us < ?"
_TAKE = f"DELETE FROM metric_rollups WHERE {_SHORTER} RETURNING {_COLUMNS}"
_SPANS = (
    "SELECT DISTINCT start_us / ? FROM metric_rollups"
    " WHERE model_id = ? AND start_us < ? AND end_us - start_us < ? ORDER BY 1 LIMIT ?"
)
_NOTE = (
    "INSERT INTO metric_pushes (model_id, digest, at_us) VALUES {}"
    " ON CONFLICT DO NOTHING RETURNING digest"
)
_DROP = "DELETE FROM metric_rollups WHERE model_id = ? AND end_us <= ?"
_FORGET = "DELETE FROM metric_pushes WHERE model_id = ? AND at_us < ?"


class SqlMetrics:
    """A model's rows over SQL. Safe to share between threads and processes."""

    def __init__(self, database: Database, model_id: int) -> None:
        self._database = database
        self._id = model_id

    def add(self, rows: Sequence[MetricRow]) -> None:
        """See `MetricStore`."""
        if rows:
            with self._database.write() as execute:
                insert_rows(execute, _INTO, self._owned(rows))

    def push(
        self,
        samples: Sequence[tuple[bytes, int]],
        rows: Callable[[Sequence[bool]], list[MetricRow]],
    ) -> list[bool]:
        """See `MetricStore`. Of two that push the same at once the second waits for the first."""
        with self._database.write() as execute:
            new: set[bytes] = set()
            for piece in pieces(dict(samples).items()):
                sql = _NOTE.format(", ".join(["(?, ?, ?)"] * len(piece)))
                given = [value for digest, at_us in piece for value in (self._id, digest, at_us)]
                new |= {bytes(digest) for (digest,) in execute(sql, given).fetchall()}
            fresh = []
            for digest, _ in samples:
                fresh.append(digest in new)
                new.discard(digest)
            if any(fresh):
                insert_rows(execute, _INTO, self._owned(rows(fresh)))
        return fresh

    def select(
        self,
        metrics: Sequence[str] = (),
        sources: Sequence[str] = (),
        *,
        min_seq: int | None = None,
        max_seq: int | None = None,
        since_us: int | None = None,
        until_us: int | None = None,
        replicas: Sequence[str] = (),
        own: bool = False,
    ) -> list[MetricRow]:
        """See `MetricStore`."""
        sql, given = _SELECT, [self._id, *metrics, *sources, *replicas]
        if metrics:
            sql += f" AND metric IN ({marks(len(metrics))})"
        if sources:
            sql += f" AND source IN ({marks(len(sources))})"
        if replicas:
            sql += f" AND replica IN ({marks(len(replicas))})"
        if own:
            sql += " AND replica IS NULL"
        bounds = {
            "last_seq >= ?": min_seq,
            "first_seq <= ?": max_seq,
            "end_us > ?": since_us,
            "start_us < ?": until_us,
        }
        for condition, bound in bounds.items():
            if bound is not None:
                sql += f" AND {condition}"
                given.append(max(-_MOST, min(bound, _MOST)))
        with self._database.look() as execute:
            rows = execute(f"{sql} ORDER BY start_us, first_seq, metric, source", given).fetchall()
        return [_row(row) for row in rows]

    def of_rollout(
        self, rollout: int, metrics: Sequence[str], after: int
    ) -> list[tuple[int, MetricRow]]:
        """See `MetricStore`."""
        sql = _OF_ROLLOUT.format(marks(len(metrics)))
        with self._database.look() as execute:
            rows = execute(sql, (self._id, rollout, after, *metrics)).fetchall()
        return [(number, _row(row)) for number, *row in rows]

    def spans(self, width_us: int, before_us: int, limit: int) -> list[int]:
        """See `MetricStore`."""
        last = before_us // width_us * width_us
        with self._database.look() as execute:
            rows = execute(_SPANS, (width_us, self._id, last, width_us, limit)).fetchall()
        return [number * width_us for (number,) in rows]

    def merge(
        self, start_us: int, width_us: int, into: Callable[[list[MetricRow]], list[MetricRow]]
    ) -> int:
        """See `MetricStore`. What another process took meanwhile is not there any more."""
        with self._database.write() as execute:
            given = (self._id, start_us, start_us + width_us, width_us)
            taken = [_row(row) for row in execute(_TAKE, given).fetchall()]
            if taken:
                insert_rows(execute, _INTO, self._owned(into(taken)))
        return len(taken)

    def drop(self, before_us: int) -> int:
        """See `MetricStore`."""
        with self._database.write() as execute:
            dropped = execute(_DROP, (self._id, before_us)).rowcount
            execute(_FORGET, (self._id, before_us))
        return dropped

    def _owned(self, rows: Iterable[MetricRow]) -> list[tuple[object, ...]]:
        return [(self._id, *row) for row in rows]


def _row(row: Sequence[object]) -> MetricRow:
    told = MetricRow(*row)  # type: ignore[arg-type]
    return told._replace(sketch=bytes(told.sketch))
