"""The log of what was done to API keys, in a database; works with no model and no server."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from weightledger.ledger.access.keys import (
    ApiKey,
    KeyChange,
    check_name,
    check_scope,
    digest_of,
    fold,
    new_secret,
)
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.sql.backend import Execute
from weightledger.ledger.sql.bulk import marks
from weightledger.ledger.sql.database import Database

_CHANGES = f"SELECT {', '.join(KeyChange._fields)} FROM api_key_changes"
_ADD = (
    f"INSERT INTO api_key_changes ({', '.join(KeyChange._fields)})"
    f" VALUES ({marks(len(KeyChange._fields))})"
)
_USED = (
    "INSERT INTO api_key_uses (name, used_at) VALUES (?, ?) ON CONFLICT (name)"
    " DO UPDATE SET used_at = excluded.used_at WHERE api_key_uses.used_at < excluded.used_at"
)

MAX_PER_MINUTE = 1_000_000
MAX_LIFETIME_S = 100 * 366 * 86_400


@dataclass(frozen=True, slots=True)
class Issued:
    """A key with its secret, which is told this once and kept nowhere."""

    key: ApiKey
    secret: str

    def __repr__(self) -> str:
        return f"<Issued {self.key.name}>"


class ApiKeys:
    """The API keys of a ledger. Safe to use from any thread, beside other processes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        scope: str = "read",
        *,
        expires_in_s: float | None = None,
        requests_per_minute: int | None = None,
        actor: str | None = None,
    ) -> Issued:
        """A new key; `actor` is who made it.

        InvalidRequest for a name that a key has or had: events of the old one would be taken for
        the new one's.
        """
        check_name(name)
        known_scope = check_scope(scope)
        if requests_per_minute is not None and not 1 <= requests_per_minute <= MAX_PER_MINUTE:
            raise InvalidRequest(
                f"requests per minute are 1 to {MAX_PER_MINUTE:,}, got {requests_per_minute}",
                param="requests_per_minute",
            )
        secret, now = new_secret(), _now()
        with self._database.write() as execute:
            if name in _read(execute):
                raise InvalidRequest(
                    f"there is or was a key {name!r}, whose name is in events: choose another name"
                    " or rotate that one",
                    param="name",
                )
            change = KeyChange(
                name=name,
                number=1,
                action="created",
                recorded_at=now,
                actor=actor,
                digest=digest_of(secret),
                scope=known_scope,
                expires_at=_after(now, expires_in_s, "expires_in_s"),
                requests_per_minute=requests_per_minute,
            )
            execute(_ADD, change)
        return Issued(fold([change])[name], secret)

    def rotate(
        self,
        name: str,
        *,
        overlap_s: float = 0.0,
        expires_in_s: float | None = None,
        actor: str | None = None,
    ) -> Issued:
        """A new secret for a key, which keeps its name, scope and limit.

        The old secret is taken for `overlap_s` more seconds, so that whoever uses it can change
        over. Without `expires_in_s` the new one lasts as long as the old one did when it was made.
        NotFound for no such key, InvalidRequest for one that was revoked.
        """
        secret, now = new_secret(), _now()
        with self._database.write() as execute:
            key, number = _existing(execute, name)
            if key.revoked_at is not None:
                raise InvalidRequest(f"the key {name!r} was revoked: make another", param="name")
            lifetime = _lifetime(key) if expires_in_s is None else expires_in_s
            change = KeyChange(
                name=name,
                number=number + 1,
                action="rotated",
                recorded_at=now,
                actor=actor,
                digest=digest_of(secret),
                scope=key.scope,
                expires_at=_after(now, lifetime, "expires_in_s"),
                requests_per_minute=key.requests_per_minute,
                old_until=_after(now, overlap_s, "overlap_s", least=0.0),
            )
            execute(_ADD, change)
            rotated = _read(execute)[name]
        return Issued(rotated, secret)

    def revoke(self, name: str, *, actor: str | None = None) -> ApiKey:
        """Let nobody in with this key from now on; one that was revoked already stays so."""
        with self._database.write() as execute:
            key, number = _existing(execute, name)
            if key.revoked_at is None:
                execute(_ADD, KeyChange(name, number + 1, "revoked", _now(), actor))
            return _read(execute)[name]

    def all(self) -> list[ApiKey]:
        """Every key that there is or was, oldest first."""
        with self._database.read() as execute:
            uses = dict(execute("SELECT name, used_at FROM api_key_uses").fetchall())
            keys = _read(execute)
        return [replace(key, used_at=uses.get(key.name)) for key in keys.values()]

    def changes(self, name: str | None = None) -> list[KeyChange]:
        """What was done to keys, or to one of them, oldest first; NotFound for no such key."""
        with self._database.look() as execute:
            rows = execute(f"{_CHANGES} ORDER BY recorded_at, name, number").fetchall()
        changes = [change for change in map(KeyChange._make, rows) if name in (None, change.name)]
        if name is not None and not changes:
            raise NotFound(f"there is no key {name!r}", param="name")
        return changes

    def used(self, uses: Mapping[str, int]) -> None:
        """Remember when keys were last used, by name."""
        with self._database.write() as execute:
            for name, at in sorted(uses.items()):
                execute(_USED, (name, at))


def _read(execute: Execute) -> dict[str, ApiKey]:
    return fold(map(KeyChange._make, execute(_CHANGES).fetchall()))


def _existing(execute: Execute, name: str) -> tuple[ApiKey, int]:
    """A key and the number of its last change."""
    key = _read(execute).get(name)
    if key is None:
        raise NotFound(f"there is no key {name!r}", param="name")
    (number,) = execute(
        "SELECT max(number) FROM api_key_changes WHERE name = ?", (name,)
    ).fetchone()
    return key, int(number)


def _lifetime(key: ApiKey) -> float | None:
    """For how many seconds its newest secret was made."""
    if key.expires_at is None:
        return None
    return (key.expires_at - (key.rotated_at or key.created_at)) / 1_000_000


def _after(now: int, seconds: float | None, param: str, *, least: float = 1.0) -> int | None:
    if seconds is None:
        return None
    if not least <= seconds <= MAX_LIFETIME_S:
        raise InvalidRequest(
            f"expected {least:g} to {MAX_LIFETIME_S:,} seconds, got {seconds:g}", param=param
        )
    return now + int(seconds * 1_000_000)


def _now() -> int:
    return time.time_ns() // 1000
