"""The keys that a server takes: its settings', the ledger's, and tokens of an issuer.

What is known of the ledger's keys is read anew every `POLL_S`, so a key that is revoked stops
working within a second, and no request waits for the database. Only who comes with an unknown key
has it looked up, since it may have been made just now. While the database does not answer, what
was known last counts for `MOST_OUTAGE_S`; then nobody comes in with a key of the ledger, since it
might have been revoked.
"""

import asyncio
import contextlib
import hmac
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from weightledger.api.rest.oidc import BadToken, Issuer
from weightledger.ledger.access.keys import STATIC_KEY_NAME, ApiKey, Scope, digest_of
from weightledger.ledger.access.records import ApiKeys
from weightledger.ledger.errors import LedgerError

logger = logging.getLogger(__name__)

POLL_S = 0.5
MOST_OUTAGE_S = 60.0

_PAUSE_S = 0.1  # between two readings: strangers cannot make more of them
_USES_S = 60.0  # how often it is written down when keys were used
_MOST_TOKENS = 16384  # that are known to be good; only the issuer's own come in
_BUCKET = 8  # first bytes of a digest: they tell nothing of the key


@dataclass(frozen=True, slots=True)
class Access:
    """Who was let in, and how far."""

    actor: str | None
    scope: Scope


ANYONE = Access(None, "admin")
"""Whoever asks a server without keys, which listens on loopback only."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a key lets nobody in. `retry_after_s` where it will later on."""

    message: str
    status: int = 401
    retry_after_s: int | None = None


NO_KEY = Refusal("expected the header Authorization: Bearer, and behind it an API key")
UNKNOWN = Refusal("there is no such API key")
_OUTAGE = Refusal("keys cannot be looked up now: the database does not answer", 503, 1)


@dataclass(slots=True)
class _Bucket:
    """Requests that a key has left: `capacity` at most, all of it again after a minute."""

    capacity: float
    left: float
    at: float

    def take(self, now: float) -> float:
        """Take one request; the seconds to wait instead, where none is left."""
        rate = self.capacity / 60.0
        self.left = min(self.capacity, self.left + (now - self.at) * rate)
        self.at = now
        if self.left >= 1.0:
            self.left -= 1.0
            return 0.0
        return (1.0 - self.left) / rate


@dataclass(frozen=True, slots=True)
class _Known:
    """The ledger's keys as they were read at a time of the monotonic clock."""

    at: float
    by_digest: dict[bytes, tuple[tuple[bytes, int | None, ApiKey], ...]] = field(
        default_factory=dict
    )
    any: bool = False


class Keyring:
    """Judges keys, on the event loop; reads the database on threads."""

    def __init__(
        self,
        keys: ApiKeys,
        api_key: str | None,
        *,
        issuer: Issuer | None = None,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._keys = keys
        self._static = None if api_key is None else digest_of(api_key)
        self._issuer = issuer
        self._tokens: dict[bytes, tuple[Access, float]] = {}
        self._clock, self._now_us = clock, now_us
        self._known = _Known(-math.inf)
        self._buckets: dict[str, _Bucket] = {}
        self._uses: dict[str, int] = {}
        self._turn = asyncio.Lock()
        self._began = -math.inf  # the last reading, whatever came of it
        self._outage: str | None = None
        self.load()

    @property
    def asks(self) -> bool:
        """Whether a key is wanted: as soon as there is one, and from then on, revoked or not."""
        return self._static is not None or self._issuer is not None or self._known.any

    async def admit(self, token: str | None) -> Access | Refusal:
        """`judge`, of an unknown token by what the database says now."""
        judged = self.judge(token)
        if judged is not UNKNOWN:
            return judged
        if self._issuer is not None and token is not None and token.count(".") == 2:
            return await self._by_token(self._issuer, token)
        await self.renew()
        return self.judge(token)

    def judge(self, token: str | None) -> Access | Refusal:
        """Who comes with a bearer token, or why they do not come in."""
        if not self.asks:
            return ANYONE
        if not token:
            return NO_KEY
        digest = digest_of(token)
        if self._static is not None and hmac.compare_digest(digest, self._static):
            return Access(STATIC_KEY_NAME, "admin")
        if self._clock() - self._known.at > MOST_OUTAGE_S:
            return _OUTAGE
        now = self._now_us()
        for known, until, key in self._known.by_digest.get(digest[:_BUCKET], ()):
            if hmac.compare_digest(digest, known):
                return self._judged(key, until, now)
        return UNKNOWN

    def refusal(self, token: str | None) -> Refusal | None:
        """Why who came in with a token would not any more; None where they would.

        Nothing is taken from what the key may ask. For replies that go on and on.
        """
        if not self.asks:
            return None
        if not token:
            return NO_KEY
        digest = digest_of(token)
        if self._static is not None and hmac.compare_digest(digest, self._static):
            return None
        if self._issuer is not None and token.count(".") == 2:
            known = self._tokens.get(digest)
            current = known is not None and self._now_us() < known[1] * 1_000_000
            return None if current else Refusal("the token has expired")
        if self._clock() - self._known.at > MOST_OUTAGE_S:
            return _OUTAGE
        for one, until, key in self._known.by_digest.get(digest[:_BUCKET], ()):
            if hmac.compare_digest(digest, one):
                return _ended(key, until, self._now_us())
        return UNKNOWN

    def _judged(self, key: ApiKey, until: int | None, now: int) -> Access | Refusal:
        if (ended := _ended(key, until, now)) is not None:
            return ended
        if key.requests_per_minute is not None:
            wait_s = self._bucket(key.name, key.requests_per_minute).take(self._clock())
            if wait_s > 0:
                return Refusal(
                    f"the API key {key.name!r} may ask {key.requests_per_minute} times a minute",
                    429,
                    max(1, math.ceil(wait_s)),
                )
        self._uses[key.name] = now
        return Access(key.name, key.scope)

    def _bucket(self, name: str, capacity: int) -> _Bucket:
        bucket = self._buckets.get(name)
        if bucket is None or bucket.capacity != capacity:
            bucket = self._buckets[name] = _Bucket(capacity, capacity, self._clock())
        return bucket

    async def follow(self) -> None:
        """Go on reading what was done to keys, and write down when they were used."""
        written = self._clock()
        asked = self.asks
        while True:
            await asyncio.sleep(POLL_S)
            await self.renew()
            if self.asks != asked:
                asked = self.asks
                logger.warning("there is an API key now: requests without one are refused")
            if self._uses and self._clock() - written >= _USES_S:
                written = self._clock()
                await asyncio.to_thread(self.write_uses)

    def write_uses(self) -> None:
        """Write down when keys were used last."""
        uses, self._uses = self._uses, {}
        with contextlib.suppress(LedgerError):  # said by others; the next use says it again
            self._keys.used(uses)

    async def _by_token(self, issuer: Issuer, token: str) -> Access | Refusal:
        """Who comes with a token of the issuer; one that was checked is known until it expires."""
        digest, now_s = digest_of(token), self._now_us() / 1_000_000
        known = self._tokens.get(digest)
        if known is not None and now_s < known[1]:
            return known[0]
        try:
            actor, scope, until = await asyncio.to_thread(issuer.admit, token)
        except BadToken as error:
            return Refusal(str(error))
        except LedgerError as error:
            logger.error("%s", error)
            return Refusal("tokens cannot be checked now: the issuer does not answer", 503, 1)
        if len(self._tokens) >= _MOST_TOKENS:
            current = {one: known for one, known in self._tokens.items() if now_s < known[1]}
            while len(current) >= _MOST_TOKENS:
                del current[next(iter(current))]
            self._tokens = current
        access = Access(actor, scope)
        self._tokens[digest] = access, until
        return access

    async def renew(self) -> None:
        """Read the keys again; one reading does for all who ask before it begins."""
        asked = self._clock()
        async with self._turn:
            if self._began > asked:
                return
            await asyncio.sleep(max(0.0, self._began + _PAUSE_S - self._clock()))
            self._began = self._clock()
            await asyncio.to_thread(self._read)

    def _read(self) -> None:
        try:
            self.load()
        except LedgerError as error:
            if self._outage is None:
                logger.error("API keys cannot be read, the last known ones count: %s", error)
            self._outage = str(error)
        except Exception:
            logger.exception("API keys cannot be read")
        else:
            self._outage = None

    def load(self) -> None:
        """Read every key; raises StorageError."""
        at = self._clock()
        keys = self._keys.all()
        by_digest: dict[bytes, tuple[tuple[bytes, int | None, ApiKey], ...]] = {}
        for key in keys:
            for secret in key.secrets:
                first = secret.digest[:_BUCKET]
                row = (secret.digest, secret.until, key)
                by_digest[first] = (*by_digest.get(first, ()), row)
        self._known = _Known(at, by_digest, bool(keys))


def _ended(key: ApiKey, until: int | None, now: int) -> Refusal | None:
    """Why one of a key's secrets counts no more, if that is so."""
    if key.revoked_at is not None:
        return Refusal(f"the API key {key.name!r} was revoked")
    if until is not None and until <= now:
        replaced = key.expires_at is None or now < key.expires_at
        what = "was replaced by another" if replaced else "has expired"
        return Refusal(f"the API key {key.name!r} {what}")
    return None
