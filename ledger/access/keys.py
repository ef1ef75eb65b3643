"""API keys: what is known of one, folded from what was done to it.

A key is `wl_` and 43 random characters, shown once. What is kept is its SHA-256, which is enough
for a random secret: there is nothing to guess. Nothing about a key is ever changed or removed;
creating, rotating and revoking are rows of a log, each with who and when, and a key is what its
rows come to.
"""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from weightledger.ledger.errors import InvalidRequest

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""Each of them includes those before it."""

PREFIX = "wl_"
_SECRET_BYTES = 32

MAX_NAME = 100
STATIC_KEY_NAME = "api-key"
RESERVED = {"oidc:": "those of tokens", "policy:": "those of policies, which act by themselves"}
"""What events call whoever comes with the key of the settings, so no other key has this name."""

Action = Literal["created", "rotated", "revoked"]


class KeyChange(NamedTuple):
    """One thing that was done to a key: the `number`th, from 1. Times are UTC microseconds.

    `digest`, `scope`, `expires_at` and `requests_per_minute` are the key's from then on, None in
    a revocation; `old_until` is how long what a rotation replaces goes on being taken.
    """

    name: str
    number: int
    action: str
    recorded_at: int
    actor: str | None
    digest: bytes | None = None
    scope: str | None = None
    expires_at: int | None = None
    requests_per_minute: int | None = None
    old_until: int | None = None


class Secret(NamedTuple):
    """The SHA-256 of a secret that a key has or had, and until when it is taken; None: for ever."""

    digest: bytes
    until: int | None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as its changes left it. The newest of its `secrets` comes last."""

    name: str
    scope: Scope
    created_at: int
    created_by: str | None
    secrets: tuple[Secret, ...]
    expires_at: int | None = None
    requests_per_minute: int | None = None
    rotated_at: int | None = None
    revoked_at: int | None = None
    revoked_by: str | None = None
    used_at: int | None = None

    def state(self, now: int) -> Literal["active", "expired", "revoked"]:
        """Whether it lets anybody in."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


def fold(changes: Iterable[KeyChange]) -> dict[str, ApiKey]:
    """The keys that changes lead to, by name, in the order of their making."""
    keys: dict[str, ApiKey] = {}
    for change in sorted(changes, key=lambda one: (one.recorded_at, one.name, one.number)):
        keys[change.name] = _after(keys.get(change.name), change)
    return keys


def _after(key: ApiKey | None, change: KeyChange) -> ApiKey:
    if change.action == "revoked" and key is not None:
        return replace(key, revoked_at=change.recorded_at, revoked_by=change.actor)
    assert change.digest is not None and change.scope in SCOPES, f"a change of {change.name!r}"
    secret = Secret(change.digest, change.expires_at)
    if key is None:
        return ApiKey(
            name=change.name,
            scope=change.scope,
            created_at=change.recorded_at,
            created_by=change.actor,
            secrets=(secret,),
            expires_at=change.expires_at,
            requests_per_minute=change.requests_per_minute,
        )
    *older, last = key.secrets
    until = min(one for one in (last.until, change.old_until) if one is not None)
    return replace(
        key,
        secrets=(*older, Secret(last.digest, until), secret),
        expires_at=change.expires_at,
        rotated_at=change.recorded_at,
    )


def new_secret() -> str:
    """A key that nobody has."""
    return PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def digest_of(secret: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(secret.encode()).digest()


def check_name(name: str) -> None:
    """Raise InvalidRequest unless a key may be called so: its name is the actor of its events."""
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
        raise InvalidRequest(f"a key's name has 1 to {MAX_NAME} characters", param="name")
    if not name.isprintable() or name != name.strip():
        raise InvalidRequest(
            f"a key's name is printable, with no space around it; got {name!r}", param="name"
        )
    check_not_reserved(name, "name")
    if name == STATIC_KEY_NAME:
        raise InvalidRequest(f"{name!r} is the key of the settings: choose another", param="name")


def check_not_reserved(name: str, param: str) -> None:
    """Raise InvalidRequest for a name that would pass for an actor whom nobody may claim to be."""
    for prefix, whose in RESERVED.items():
        if name.startswith(prefix):
            raise InvalidRequest(f"names that begin with {prefix!r} are {whose}", param=param)


def check_scope(scope: str) -> Scope:
    """The scope of this name; InvalidRequest for none."""
    for one in SCOPES:
        if scope == one:
            return one
    raise InvalidRequest(f"a scope is {', '.join(SCOPES)}, got {scope!r}", param="scope")
