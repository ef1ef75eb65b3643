"""Who is let in, by a clock that the test moves: expiry, limits, outages."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from weightledger.api.rest import keyring
from weightledger.api.rest.keyring import ANYONE, MOST_OUTAGE_S, Access, Keyring, Refusal
from weightledger.ledger.errors import StorageUnavailable
from weightledger.ledger.store.sql_store import SqlStore


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def store(sqlite_url: str) -> Iterator[SqlStore]:
    opened = SqlStore.open(sqlite_url)
    yield opened
    opened.close()


def ring(store: SqlStore, clock: Clock, api_key: str | None = None, now_us: Any = None) -> Keyring:
    more = {} if now_us is None else {"now_us": now_us}
    return Keyring(store.keys, api_key, clock=clock, **more)


def refused(judged: Any) -> Refusal:
    assert isinstance(judged, Refusal)
    return judged


def test_without_any_key_everybody_comes_in_and_with_one_nobody_else(store: SqlStore) -> None:
    keys = ring(store, Clock())
    assert keys.judge(None) is ANYONE
    assert keys.judge("wl_whatever") is ANYONE
    issued = store.keys.create("ci", "write")
    keys.load()
    assert keys.judge(issued.secret) == Access("ci", "write")
    for token in (None, "", "wl_", issued.secret[:-1], issued.secret + "x", issued.secret.upper()):
        assert refused(keys.judge(token)).status == 401
    store.keys.revoke("ci")
    keys.load()
    assert "revoked" in refused(keys.judge(issued.secret)).message
    assert refused(keys.judge(None)).status == 401  # it does not open again


def test_the_static_key_and_several_others_side_by_side(store: SqlStore) -> None:
    made = {scope: store.keys.create(scope, scope).secret for scope in ("read", "write", "admin")}
    keys = ring(store, Clock(), "wl_static")
    assert keys.judge("wl_static") == Access("api-key", "admin")
    for scope, secret in made.items():
        assert keys.judge(secret) == Access(scope, scope)


def test_a_key_ends_at_its_time_and_a_rotated_one_after_its_overlap(store: SqlStore) -> None:
    first = store.keys.create("ci", expires_in_s=100)
    second = store.keys.rotate("ci", overlap_s=10)
    at = second.key.rotated_at
    assert at is not None
    now = at
    keys = ring(store, Clock(), now_us=lambda: now)
    assert isinstance(keys.judge(first.secret), Access)
    now = at + 10_000_000
    assert "was replaced" in refused(keys.judge(first.secret)).message
    assert isinstance(keys.judge(second.secret), Access)
    now = at + 100_000_000
    assert "has expired" in refused(keys.judge(second.secret)).message


def test_a_key_asks_as_often_as_it_may(store: SqlStore) -> None:
    clock = Clock()
    slow = store.keys.create("slow", requests_per_minute=3).secret
    free = store.keys.create("free").secret
    keys = ring(store, clock)
    for _ in range(3):
        assert isinstance(keys.judge(slow), Access)
    over = refused(keys.judge(slow))
    assert (over.status, over.retry_after_s) == (429, 20)
    assert isinstance(keys.judge(free), Access)
    clock.s += 19.5
    assert refused(keys.judge(slow)).retry_after_s == 1
    clock.s += 0.5
    assert isinstance(keys.judge(slow), Access)
    assert refused(keys.judge(slow)).status == 429
    clock.s += 3600
    keys.load()
    assert [type(keys.judge(slow)) for _ in range(4)] == [Access] * 3 + [Refusal]


def test_while_the_database_is_away_known_keys_count_for_a_minute(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    secret = store.keys.create("ci").secret
    keys = ring(store, clock, "wl_static")

    def away() -> Any:
        raise StorageUnavailable("away")

    monkeypatch.setattr(store.keys, "all", away)
    clock.s += MOST_OUTAGE_S
    assert isinstance(keys.judge(secret), Access)
    unknown = asyncio.run(keys.admit("wl_other"))
    assert refused(unknown).status == 401
    assert caplog.text.count("cannot be read") == 1
    clock.s += 0.1
    late = refused(keys.judge(secret))
    assert (late.status, late.retry_after_s) == (503, 1)
    assert isinstance(keys.judge("wl_static"), Access)


def test_a_key_that_was_made_just_now_works_at_once(store: SqlStore) -> None:
    clock = Clock()
    store.keys.create("first")
    keys = ring(store, clock)
    secret = store.keys.create("second").secret
    assert isinstance(keys.judge(secret), Refusal)
    assert asyncio.run(keys.admit(secret)) == Access("second", "read")


def test_strangers_share_a_reading(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.keys.create("first")
    keys = Keyring(store.keys, None)
    read, real = [], store.keys.all
    monkeypatch.setattr(store.keys, "all", lambda: read.append(1) or real())

    async def crowd() -> list[Any]:
        return await asyncio.gather(*(keys.admit(f"wl_{number}") for number in range(200)))

    assert {refused(one).status for one in asyncio.run(crowd())} == {401}
    assert len(read) == 1


def test_uses_are_written_down(store: SqlStore) -> None:
    secret = store.keys.create("ci").secret
    keys = ring(store, Clock(), now_us=lambda: 7)
    keys.judge(secret)
    keys.judge("wl_nobody")
    keys.write_uses()
    assert [key.used_at for key in store.keys.all()] == [7]


class Issuing:
    """Takes every token, each for as long as its second part says."""

    def admit(self, token: str) -> tuple[str, str, float]:
        return "job", "read", float(token.split(".")[1])


def test_tokens_that_have_expired_make_room_and_those_that_count_stay(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job of a build server brings its own: when there had been as many as are remembered,
    everybody's stream ended with "the token has expired", and so did slow uploads."""
    monkeypatch.setattr(keyring, "_MOST_TOKENS", 4)
    now = 0
    issuer: Any = Issuing()
    keys = Keyring(store.keys, None, issuer=issuer, clock=Clock(), now_us=lambda: now * 1_000_000)
    assert isinstance(asyncio.run(keys.admit("stream.1000.x")), Access)
    for job in range(10):
        now = 10 * job
        token = f"job{job}.{now + 5}.x"
        assert isinstance(asyncio.run(keys.admit(token)), Access)
        assert keys.refusal(token) is None
        assert keys.refusal("stream.1000.x") is None
    assert len(keys._tokens) <= 4
    for late in range(5):
        asyncio.run(keys.admit(f"late{late}.2000.x"))
    assert len(keys._tokens) == 4
