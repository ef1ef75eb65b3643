"""At most so many replicas change what they show at once."""

import threading
from typing import Any

import pytest

from tests.fleet.conftest import Follow, until_shown, update
from tests.waiting import PATIENCE_S, until
from weightledger import Log
from weightledger.ledger.errors import InvalidRequest

postgresql = pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
sqlite = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)


@postgresql
def test_a_replica_waits_for_its_turn_and_holds_it_while_it_changes(
    log: Log, follow: Follow, fleet_url: str, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower, other = follow("a", rolling=1), follow("b", rolling=2)
    someone = log.history.store.slots(1, "someone")
    with someone.held(lambda: True) as taken:
        assert taken
        seq = update(log)
        until_shown(other, seq)  # one of two was free
        until(lambda: follower.readiness().reason or follower.live.head.seq == seq)
        readiness = follower.readiness()
        assert readiness.reason == "waits for its turn: at most 1 replicas change at once"
        assert readiness.ready and readiness.lag_events == 1
        # Whoever dies amid a change holds nobody up.
        asked = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = %s"
        admin = plain(fleet_url)
        ((pid,),) = admin.execute(asked, (0x77656973,)).fetchall()
        admin.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,))
        until_shown(follower, seq)
    until(lambda: follower.readiness().reason is None)

    other.close()
    amid, go_on = threading.Event(), threading.Event()
    catch_up = follower.log.catch_up

    def slowly(*asked: Any) -> Any:
        amid.set()
        assert go_on.wait(PATIENCE_S)
        return catch_up(*asked)

    monkeypatch.setattr(follower.log, "catch_up", slowly)
    seq = update(log)
    assert amid.wait(PATIENCE_S)
    with someone.held(lambda: False) as taken:
        assert not taken
    go_on.set()
    until_shown(follower, seq)
    with someone.held(lambda: True) as taken:
        assert taken
    someone.close()


@postgresql
def test_a_replica_that_waits_for_its_turn_can_be_told_to_stop(log: Log, follow: Follow) -> None:
    follower = follow("a", rolling=1)
    someone = log.history.store.slots(1, "someone")
    with someone.held(lambda: True):
        seq = update(log)
        until(lambda: follower.readiness().reason or follower.live.head.seq == seq)
        follower.close()
        assert follower.live.head.seq == 0
    someone.close()


@sqlite
def test_what_cannot_be_is_refused(log: Log, follow: Follow) -> None:
    with pytest.raises(InvalidRequest, match="rolling needs PostgreSQL"):
        follow("a", rolling=1)


@postgresql
def test_a_number_is_refused_that_lets_nobody_change(log: Log, follow: Follow) -> None:
    with pytest.raises(InvalidRequest, match="rolling must be from 1 to 256, got 0"):
        follow("a", rolling=0)
