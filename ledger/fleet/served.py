"""Who follows a log, how each stands, and who served what at a time.

What is not known is said to be unknown: a replica that was not heard of may have served anything
that it had shown last, or nothing.
"""

from dataclasses import dataclass

from weightledger.ledger.errors import NotFound
from weightledger.ledger.history import rollouts
from weightledger.ledger.history.positions import iso_time
from weightledger.ledger.history.reader import History
from weightledger.ledger.store.replica_rows import ReplicaRow

GONE = "gone"
"""The state of a replica whose lease has run out."""


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica as it was last heard of; times are UTC microseconds of the database's clock.

    `state` is its own word, or GONE; `target` the node that the log has it show, None for the head.
    """

    replica: str
    state: str
    reason: str | None
    seq: int | None
    digest: bytes | None
    position: int | None
    lag_events: int | None
    lag_s: float
    target: int | None
    cohort: int | None
    incarnation: int
    host: str
    url: str | None
    release: str
    started_at: int
    seen_at: int


@dataclass(frozen=True, slots=True)
class Served:
    """What a replica served at a time: the state at `seq` with its digest, from `since` to `until`.

    With `known` False it is what was shown last, and `reason` says why that is not certain. A seq
    that is None is nothing.
    """

    replica: str
    at: int
    known: bool
    seq: int | None
    digest: bytes | None
    since: int | None
    until: int | None
    incarnation: int | None
    reason: str | None


def fleet(history: History) -> list[Replica]:
    """Every replica that there ever was, by name."""
    rows = history.store.replicas.all()
    if not rows:
        return []
    last = history.store.last_seq()
    rollout = rollouts.newest(history.store)
    return [_replica(row, last, rollout) for row in rows]


def _replica(row: ReplicaRow, last: int, rollout: rollouts.Rollout | None) -> Replica:
    said = row.standing
    running = rollout is not None and rollout.running
    return Replica(
        replica=row.replica,
        state=said.state if row.leased or said.state == "stopped" else GONE,
        reason=said.reason if row.leased else f"last heard of at {iso_time(row.seen_at)}",
        seq=said.seq,
        digest=said.digest,
        position=said.position,
        lag_events=None if said.position is None else max(0, last - said.position),
        lag_s=said.lag_s,
        target=rollouts.target(rollout, row.replica),
        cohort=rollouts.cohort(rollout.id, row.replica) if running and rollout else None,
        incarnation=row.incarnation,
        host=row.host,
        url=row.url,
        release=row.release,
        started_at=row.started_at,
        seen_at=row.seen_at,
    )


def served(history: History, replica: str, at: int) -> Served:
    """What a replica served at a time (UTC microseconds); NotFound for one that never was."""
    rows = {row.replica: row for row in history.store.replicas.all()}
    if replica not in rows:
        names = ", ".join(rows) or "none"
        raise NotFound(f"replica {replica!r} not found; there are {names}", param="replica")
    heard = rows[replica]
    row, after = history.store.replicas.shown_around(replica, at)
    if row is None:
        return Served(
            *(replica, at, True, None, None, None),
            *(None if after is None else after.shown_at, None, "it had not begun"),
        )
    if after is None:
        until, known = heard.seen_at, at <= heard.seen_at or row.seq is None
    elif after.incarnation == row.incarnation:
        until, known = after.shown_at, True
    else:
        until = row.shown_at if after.seen_until is None else after.seen_until
        known = at <= until or row.seq is None
    reason = None
    if not known:
        reason = f"it was last heard of at {iso_time(until)}"
    elif row.seq is None:
        reason = "it showed nothing"
    return Served(
        *(replica, at, known, row.seq, row.digest, row.shown_at, until, row.incarnation, reason)
    )
