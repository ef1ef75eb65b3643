"""API keys, and what was done to them."""

from typing import Literal

from pydantic import Field

from weightledger.api.rest.answers import Exact


class Key(Exact):
    """An API key, without its secret."""

    name: str = Field(examples=["trainer"])
    scope: Literal["read", "write", "admin"]
    state: Literal["active", "expired", "revoked"]
    requests_per_minute: int | None
    created_by: str | None
    revoked_by: str | None
    created_at: str
    expires_at: str | None
    rotated_at: str | None
    revoked_at: str | None
    used_at: str | None = Field(description="To the minute.")


class KeyList(Exact):
    """Every key that there is or was, oldest first."""

    object: Literal["list"]
    data: list[Key]


class IssuedKey(Key):
    """A key with its secret, which is told this once and kept nowhere."""

    key: str = Field(examples=["wl_8Jv0PZt1kq0Yx3cN5uT7wR9aB2dF4gH6jK8mP0sV1xZ"])


class KeyChange(Exact):
    """One thing that was done to a key."""

    action: Literal["created", "rotated", "revoked"]
    recorded_at: str
    actor: str | None


class KeyChanges(Exact):
    """What was done to one key, oldest first."""

    object: Literal["list"]
    data: list[KeyChange]
