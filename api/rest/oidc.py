"""Bearer tokens of an OpenID Connect issuer, as keys beside the ledger's own.

A token is a JWT that the configured issuer signed for the configured audience and that has not
expired. Its scopes are those of `scope` (words) or `roles` that begin with `weightledger:`; its
subject is the actor, as `oidc:SUBJECT`, so that no token has the name of a key. Tokens are checked
with the issuer's public keys, which are read anew every few minutes and when a token names an
unknown one; a token is good until it expires, whatever the issuer thinks of it meanwhile.
"""

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2

from weightledger.ledger.access.keys import SCOPES, Scope
from weightledger.ledger.errors import EngineUnavailable, InvalidRequest
from weightledger.ledger.http import client, is_loopback

if TYPE_CHECKING:
    import jwt

# Signed with a private key: what verifies one cannot make one.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
_PREFIX = "weightledger:"
_LEEWAY_S = 30
_KEYS_S = 300.0  # how long the issuer's keys are taken as they were read
_AGAIN_S = 10.0  # least time between two readings, so that made-up tokens cannot make more of them
_TIMEOUT_S = 5.0
_MOST_SUBJECT = 255  # characters, as OpenID Connect has it

ACTOR_PREFIX = "oidc:"


class BadToken(Exception):
    """Why a token lets nobody in."""


class Issuer:
    """One issuer. `admit` may be called from any thread; it may ask the issuer."""

    def __init__(self, url: str, audience: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            raise InvalidRequest(
                f"the OpenID Connect issuer has an https URL, got {url!r}", param="oidc_issuer"
            )
        try:
            import jwt
        except ImportError:
            raise InvalidRequest(
                "tokens of an issuer need PyJWT: pip install 'weightledger[oidc]'",
                param="oidc_issuer",
            ) from None
        self._jwt = jwt
        self.url, self.audience = url.rstrip("/"), audience
        # Some issuers' names end with a slash; whoever configures one writes it with it or without.
        self._names = (self.url, f"{self.url}/")
        self._lock = threading.Lock()
        self._unreadable: str | None = None
        self._keys: Mapping[str | None, jwt.PyJWK] = {}
        self._read_at = float("-inf")
        self._tried_at = float("-inf")

    def admit(self, token: str) -> tuple[str, Scope, float]:
        """The actor and the scope of a token, and when it expires (seconds since 1970).

        BadToken says why not; EngineUnavailable when the issuer's keys cannot be had.
        """
        jwt = self._jwt
        try:
            key = self._key(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=list(_ALGORITHMS),
                audience=self.audience,
                issuer=self._names,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise BadToken(f"the token is not taken: {error}") from None
        subject = claims["sub"]
        if not 0 < len(subject) <= _MOST_SUBJECT or not subject.isprintable():
            raise BadToken(
                f"the token's subject has 1 to {_MOST_SUBJECT} printable characters, got"
                f" {subject[:80]!r}"
            )
        scope = _scope(claims)
        if scope is None:
            raise BadToken(
                f"the token has none of the scopes {', '.join(_PREFIX + one for one in SCOPES)}"
            )
        return f"{ACTOR_PREFIX}{subject}", scope, float(claims["exp"]) + _LEEWAY_S

    def _key(self, name: str | None) -> "jwt.PyJWK":
        with self._lock:
            now = time.monotonic()
            if not self._has(name, now) and now - self._tried_at > _AGAIN_S:
                self._tried_at = now
                try:
                    self._keys, self._unreadable = self._read(), None
                    self._read_at = now
                except EngineUnavailable as error:
                    self._unreadable = str(error)
            if self._has(name, now):
                return self._keys[name]
            if self._unreadable is not None:  # it may be a good one: nobody is told otherwise
                raise EngineUnavailable(self._unreadable)
        raise BadToken("the token is signed with a key that the issuer does not have")

    def _has(self, name: str | None, now: float) -> bool:
        return name in self._keys and now - self._read_at <= _KEYS_S

    def _read(self) -> "Mapping[str | None, jwt.PyJWK]":
        try:
            with client(self.url, param="oidc_issuer", timeout=_TIMEOUT_S) as http:
                about = http.get(f"{self.url}/.well-known/openid-configuration")
                about.raise_for_status()
                listed = http.get(str(about.json()["jwks_uri"]))
                listed.raise_for_status()
                keys = self._jwt.PyJWKSet.from_dict(listed.json()).keys
        except (httpx2.HTTPError, ValueError, KeyError, self._jwt.PyJWTError) as error:
            raise EngineUnavailable(
                f"the issuer's keys cannot be read from {self.url}: {error}"
            ) from None
        return {key.key_id: key for key in keys}


def _scope(claims: Mapping[str, Any]) -> Scope | None:
    """The largest scope that a token has."""
    said: list[Any] = []
    for name in ("scope", "scp", "roles"):
        value = claims.get(name)
        said += (
            value.split() if isinstance(value, str) else value if isinstance(value, list) else []
        )
    held = [one for one in SCOPES if f"{_PREFIX}{one}" in said]
    return held[-1] if held else None
