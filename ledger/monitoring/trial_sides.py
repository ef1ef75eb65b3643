"""The two sides of a trial, the settled state and what is newer; a coin says which one is met.

The settled state is held as a version of its own, which costs what changed.
"""

import hashlib
import random
from contextlib import AbstractContextManager

from weightledger.ledger.engines import HeldVersion, Live, SeveralVersions


class Sides:
    """Safe to use from any thread; leasing takes no lock.

    `share` of the requests meets what is live, the others `settled`.
    """

    def __init__(
        self, engine: SeveralVersions, share: float, settled: HeldVersion | None = None
    ) -> None:
        self._engine = engine
        self._share = share
        self.settled: HeldVersion = settled or engine.hold()

    def settle(self) -> None:
        """Let every request meet what is live."""
        self.settled = self._engine.hold()

    def differ(self) -> bool:
        """Whether what is live is not the settled state."""
        with self._engine.lease() as live:
            return live.digest != self.settled.digest

    def lease(self, key: str | None) -> AbstractContextManager[Live]:
        """Hold the state that this request meets; all that come with one key meet the same."""
        settled = self.settled
        live = self._engine.lease()
        with live as version:
            if version.digest == settled.digest or self._meets_new(key, settled.seq):
                return live
        return settled.leased()

    def _meets_new(self, key: str | None, settled: int) -> bool:
        if key is None:
            return random.random() < self._share
        digest = hashlib.blake2b(f"{settled}\0{key}".encode(errors="replace"), digest_size=8)
        return int.from_bytes(digest.digest(), "big") < self._share * 2**64
