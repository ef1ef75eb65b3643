"""The log of what was done to API keys, on both databases."""

import hashlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from weightledger.ledger.access.keys import SCOPES
from weightledger.ledger.errors import Conflict, InvalidRequest, NotFound
from weightledger.ledger.sql import refusals
from weightledger.ledger.store.sql_store import SqlStore


def test_a_key_is_told_once_and_kept_as_its_digest(
    store: SqlStore, database_url: str, plain: Callable[[str], Any]
) -> None:
    issued = store.keys.create("ci", "write", expires_in_s=60, actor="ana")
    assert issued.secret.startswith("wl_") and len(issued.secret) >= 43
    assert issued.secret not in repr(issued)
    (key,) = store.keys.all()
    assert (key.name, key.scope, key.created_by, key.used_at) == ("ci", "write", "ana", None)
    assert key.secrets[-1].digest == hashlib.sha256(issued.secret.encode()).digest()
    connection = plain(database_url)
    rows = connection.execute("SELECT * FROM api_key_changes").fetchall()
    assert issued.secret[3:].encode() not in b"".join(repr(row).encode() for row in rows)
    assert key.state(key.created_at) == "active"
    assert key.state(key.created_at + 60_000_000) == "expired"


def test_what_was_done_to_a_key_stays_with_who_and_when(store: SqlStore) -> None:
    before = time.time_ns() // 1000
    first = store.keys.create("ci", requests_per_minute=5, expires_in_s=90, actor="ana")
    second = store.keys.rotate("ci", overlap_s=30, actor="bo")
    key = second.key
    assert key.requests_per_minute == 5 and key.scope == "read"
    assert first.secret != second.secret
    old, new = key.secrets
    assert old.until is not None and new.until is not None and old.until < new.until
    assert new.until - key.rotated_at == 90_000_000
    assert store.keys.revoke("ci", actor="cy").revoked_by == "cy"
    assert store.keys.revoke("ci", actor="dee").revoked_by == "cy"
    changes = store.keys.changes("ci")
    assert [(one.action, one.actor) for one in changes] == [
        ("created", "ana"),
        ("rotated", "bo"),
        ("revoked", "cy"),
    ]
    times = [before, *(one.recorded_at for one in changes)]
    assert times == sorted(times)
    with pytest.raises(InvalidRequest, match="was revoked"):
        store.keys.rotate("ci")


def test_a_rotation_does_not_make_the_old_secret_last_longer(store: SqlStore) -> None:
    store.keys.create("ci", expires_in_s=10)
    old, new = store.keys.rotate("ci", overlap_s=3600, expires_in_s=7200).key.secrets
    assert old.until < new.until - 3600 * 1_000_000
    again = store.keys.rotate("ci").key.secrets
    assert again[0] == old and again[1].until < new.until


@pytest.mark.parametrize(
    "name", ["", "x" * 101, " ci", "ci ", "a\nb", "a\0b", "api-key", "oidc:ana", "policy:safe"]
)
def test_a_name_that_could_be_mistaken_is_refused(store: SqlStore, name: str) -> None:
    with pytest.raises(InvalidRequest):
        store.keys.create(name)
    assert store.keys.all() == []


def test_bad_keys_change_nothing(store: SqlStore) -> None:
    store.keys.create("ci")
    for fields in (
        {"name": "ci"},
        {"name": "x", "scope": "root"},
        {"name": "x", "expires_in_s": 0},
        {"name": "x", "expires_in_s": float("nan")},
        {"name": "x", "expires_in_s": 1e12},
        {"name": "x", "requests_per_minute": 0},
        {"name": "x", "requests_per_minute": 2_000_000},
    ):
        with pytest.raises(InvalidRequest):
            store.keys.create(**fields)
    store.keys.revoke("ci")
    with pytest.raises(InvalidRequest, match="is or was a key"):
        store.keys.create("ci")
    for change in (store.keys.rotate, store.keys.revoke, store.keys.changes):
        with pytest.raises(NotFound, match="no key 'dee'"):
            change("dee")
    assert len(store.keys.changes()) == 2


def test_uses_only_go_on(store: SqlStore) -> None:
    store.keys.create("ci")
    store.keys.used({"ci": 5})
    store.keys.used({"ci": 3})
    assert store.keys.all()[0].used_at == 5


def test_nobody_changes_what_was_done(
    store: SqlStore, database_url: str, plain: Callable[[str], Any]
) -> None:
    store.keys.create("ci")
    store.keys.revoke("ci")
    before = store.keys.changes()
    connection = plain(database_url)
    for statement in (
        "UPDATE api_key_changes SET scope = 'admin'",
        "DELETE FROM api_key_changes WHERE action = 'revoked'",
        "INSERT INTO api_key_changes SELECT * FROM api_key_changes",
    ):
        with pytest.raises(Exception, match=r"append-only|exists|duplicate key"):
            connection.execute(statement)
    assert store.keys.changes() == before


@pytest.mark.parametrize("reason", ["api_key_changes_pkey", "this change of a key exists"])
def test_two_changes_at_once_are_a_conflict(reason: str) -> None:
    refused = refusals.refusal(f"weightledger: {reason}")
    assert isinstance(refused, Conflict)


def test_a_scope_includes_those_before_it() -> None:
    assert SCOPES == ("read", "write", "admin")
