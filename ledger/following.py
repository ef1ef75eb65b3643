"""Taking up a model to follow: its log read-only, its live weights the ledger's."""

import os
import socket
from concurrent.futures import Executor

from weightledger.ledger.engines import Engine
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.fleet.follower import Follower, Following
from weightledger.ledger.fleet.readiness import Limits
from weightledger.ledger.opening import open_log
from weightledger.ledger.sql.wakeups import Wake
from weightledger.ledger.store import LedgerStore
from weightledger.ledger.writing.policy import Policy

REPLICA_VARIABLE = "WEIGHTLEDGER_REPLICA"

_MOST_CHARACTERS = 200


def follow(
    store: LedgerStore,
    pool: Executor,
    name: str,
    engine: Engine | None,
    replica: str | None,
    wake: Wake,
    limits: Limits | None,
    rolling: int | None,
    prepares: bool,
    *,
    max_held_versions: int,
    held_versions_wait_s: float,
) -> Follower:
    """See `Ledger.follow`."""
    replica = replica_name(replica)
    log = open_log(
        store,
        pool,
        name,
        None,
        engine,
        "ledger",
        alpha=1.0,
        max_held_versions=max_held_versions,
        held_versions_wait_s=held_versions_wait_s,
        policy=Policy(read_only=refusal(replica)),
    )
    limits = limits or Limits()
    how = Following(replica, refusal(replica), None, wake, limits, rolling, prepares)
    return Follower(log, how)


def refusal(replica: str) -> str:
    """What is said to who would write through a replica."""
    return f"replica {replica!r} follows the log, which is written elsewhere"


def replica_name(asked: str | None) -> str:
    """What a replica is called: as asked, by the environment, or as its host."""
    name = asked or os.environ.get(REPLICA_VARIABLE) or socket.gethostname()
    if not name.isprintable() or not 1 <= len(name) <= _MOST_CHARACTERS:
        raise InvalidRequest(
            f"a replica's name has 1 to {_MOST_CHARACTERS} printable characters, got {name!r}",
            param="replica",
        )
    return name
