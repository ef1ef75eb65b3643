"""Rows of who follows one model's log: leases, and what each replica showed since when.

They are no part of the log. All times are the database's clock: a replica says how long ago it
began to show a state, never when.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from weightledger.ledger.errors import ReplicaSuperseded
from weightledger.ledger.sql.database import Database


class Shown(NamedTuple):
    """A replica began to show a state, `at` by its monotonic clock; `number` counts within its
    incarnation.

    `position` is the last event shown and `seq` the state's; both None for nothing any more.
    """

    number: int
    at: float
    position: int | None
    seq: int | None
    digest: bytes | None


class ReplicaStanding(NamedTuple):
    """What a replica says of itself; `node` is the state that it shows, in the tree of states."""

    state: str
    reason: str | None
    position: int | None
    seq: int | None
    node: int | None
    digest: bytes | None
    lag_events: int
    lag_s: float


Said = Callable[[], tuple[ReplicaStanding, Sequence[Shown]]]
"""What a replica has to say: how it stands, and every state that it began to show and has not
reported; none that the standing names may be missing."""


class ReplicaRow(NamedTuple):
    """A replica as it was last heard of; times are UTC microseconds of the database's clock.

    `leased` says whether that was within its lease.
    """

    replica: str
    incarnation: int
    host: str
    url: str | None
    release: str
    started_at: int
    seen_at: int
    leased: bool
    standing: ReplicaStanding


class ShownRow(NamedTuple):
    """A row of what a replica showed. The first one of an incarnation shows nothing yet, and says
    in `seen_until` when the incarnation before it was heard of last."""

    incarnation: int
    number: int
    shown_at: int
    position: int | None
    seq: int | None
    digest: bytes | None
    seen_until: int | None


class ReplicaStore(Protocol):
    """The port: what a fleet asks of a store."""

    def begin(self, replica: str, host: str, url: str | None, release: str, lease_s: float) -> int:
        """Take up reporting as a replica; gives the incarnation, and ends that of another."""

    def report(self, replica: str, incarnation: int, said: Said, lease_s: float) -> None:
        """Renew the lease and say what is shown, in one transaction.

        The time that it is heard of is looked up before `said` is asked: up to then all is said.

        ReplicaSuperseded, and nothing is written, when a newer incarnation has begun.
        """

    def all(self) -> list[ReplicaRow]:
        """Every replica there ever was, by name."""

    def shown_around(self, replica: str, at: int) -> tuple[ShownRow | None, ShownRow | None]:
        """The last row that a replica wrote for a time up to `at`, and the first one after it."""


_NAMES = "state, reason, position, seq, node, digest, lag_events, lag_s"
_SHOWN = "incarnation, number, shown_at, position, seq, digest, seen_until"


class SqlReplicas:
    """`ReplicaStore` over SQL."""

    def __init__(self, database: Database, model_id: int) -> None:
        self._database = database
        self._id = model_id
        self._now = database.backend.NOW

    def begin(self, replica: str, host: str, url: str | None, release: str, lease_s: float) -> int:
        """See `ReplicaStore.begin`."""
        now, lease_us = self._now, int(lease_s * 1_000_000)
        with self._database.write() as execute:
            incarnation, seen_at = execute(
                "INSERT INTO replicas (model_id, replica, incarnation, host, url, release,"
                " started_at, seen_at, lease_until, state)"
                f" VALUES (?, ?, 1, ?, ?, ?, {now}, {now}, {now} + ?, 'starting')"
                " ON CONFLICT (model_id, replica) DO UPDATE SET"
                " incarnation = replicas.incarnation + 1, host = excluded.host,"
                " url = excluded.url, release = excluded.release,"
                " started_at = excluded.started_at, lease_until = excluded.lease_until,"
                " state = 'starting', reason = NULL RETURNING incarnation, seen_at",
                (self._id, replica, host, url, release, lease_us),
            ).fetchone()
            execute(
                f"INSERT INTO replica_states (model_id, replica, {_SHOWN})"
                f" VALUES (?, ?, ?, 0, {now}, NULL, NULL, NULL, ?)",
                (self._id, replica, incarnation, seen_at if incarnation > 1 else None),
            )
            execute(
                f"UPDATE replicas SET seen_at = {now} WHERE model_id = ? AND replica = ?",
                (self._id, replica),
            )
        return int(incarnation)

    def report(self, replica: str, incarnation: int, said: Said, lease_s: float) -> None:
        """See `ReplicaStore.report`."""
        with self._database.write() as execute:
            now, newest = execute(
                f"SELECT {self._now}, (SELECT max(shown_at) FROM replica_states"
                " WHERE model_id = ? AND replica = ?)",
                (self._id, replica),
            ).fetchone()
            looked = time.monotonic()
            standing, shown = said()
            renewed = execute(
                "UPDATE replicas SET seen_at = ?, lease_until = ?, state = ?,"
                " reason = ?, position = ?, seq = ?, node = ?, digest = ?, lag_events = ?,"
                " lag_s = ? WHERE model_id = ? AND replica = ? AND incarnation = ?",
                (
                    *(now, now + int(lease_s * 1_000_000)),
                    *(*standing, self._id, replica, incarnation),
                ),
            )
            if renewed.rowcount != 1:
                raise ReplicaSuperseded(
                    f"another process has begun to report as replica {replica!r}: give each a name"
                    " of its own by --replica or WEIGHTLEDGER_REPLICA"
                )
            for one in shown:
                # By one look at the clock, and none before the one that was shown before it: how
                # long statements take would turn the order of two states round.
                newest = max(newest, now + int((one.at - looked) * 1_000_000))
                execute(
                    f"INSERT INTO replica_states (model_id, replica, {_SHOWN})"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                    (
                        *(self._id, replica, incarnation, one.number),
                        *(newest, one.position, one.seq, one.digest),
                    ),
                )

    def all(self) -> list[ReplicaRow]:
        """See `ReplicaStore.all`."""
        with self._database.look() as execute:
            rows = execute(
                "SELECT replica, incarnation, host, url, release, started_at, seen_at,"
                f" CASE WHEN lease_until > {self._now} THEN 1 ELSE 0 END, {_NAMES} FROM replicas"
                " WHERE model_id = ? ORDER BY replica",
                (self._id,),
            ).fetchall()
        return [_replica(row) for row in rows]

    def shown_around(self, replica: str, at: int) -> tuple[ShownRow | None, ShownRow | None]:
        """See `ReplicaStore.shown_around`."""
        select = f"SELECT {_SHOWN} FROM replica_states WHERE model_id = ? AND replica = ?"
        given = (self._id, replica, at)
        with self._database.read() as execute:
            last = execute(
                f"{select} AND shown_at <= ?"
                " ORDER BY shown_at DESC, incarnation DESC, number DESC LIMIT 1",
                given,
            ).fetchone()
            after = execute(
                f"{select} AND shown_at > ? ORDER BY shown_at, incarnation, number LIMIT 1", given
            ).fetchone()
        return (
            None if last is None else ShownRow(*last),
            None if after is None else ShownRow(*after),
        )


def _replica(row: Any) -> ReplicaRow:
    known, leased, said, lag_events, lag_s = row[:7], row[7], row[8:14], row[14], row[15]
    standing = ReplicaStanding._make((*said, lag_events or 0, lag_s or 0.0))
    return ReplicaRow._make((*known, bool(leased), standing))
