"""Bringing a server to a state: one update, in the order in which a failure can be survived.

Reading and verifying come first, while the server goes on serving. From the pause on no request
runs; it is resumed only when every worker confirms the state and the caches are empty. A failure in
between leaves it paused, or serving what it served before: the caller decides what comes next.
"""

import time
from dataclasses import dataclass

from ledger.engines.vllm import UNSETTLED, Target
from ledger.engines.vllm.server import Refused, Server


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds the workers took to read the tensors, and for which no request ran."""

    stage_s: float
    pause_s: float


@dataclass(frozen=True, slots=True)
class Replica:
    """A server, the model's name in the ledger, and where its workers find the database."""

    server: Server
    model: str
    database: str | None

    def shows(self, target: Target) -> bool:
        """Whether it serves exactly that state, as far as it can tell."""
        version = self.server.version()
        if version is None:
            return self.server.confirm(self.model, target)
        return version == target.version

    def update(self, target: Target, names: list[str] | None, since: Target | None) -> Timing:
        """Bring it to `target`. `names` changed since the state `since`, which it shows; None: all.

        Raises EngineUnavailable; then `shows` tells whether anything was touched.
        """
        server = self.server
        versioned = server.version() is not None
        started = time.perf_counter()
        server.stage(self.model, target, database=self.database, names=names, since=since)
        staged = time.perf_counter()
        server.pause()
        if versioned:
            # Should any of the workers fail, the weights have no name any more that says otherwise.
            server.name_weights(UNSETTLED)
            server.start()
        server.load(target)
        if versioned:
            server.finish(target.version)
        server.reset_caches()
        self._require(target)
        server.resume()
        return Timing(staged - started, time.perf_counter() - staged)

    def _require(self, target: Target) -> None:
        if not self.server.confirm(self.model, target) or not self.shows(target):
            raise Refused(f"{self.server.url} does not hold {target.version} after the update", 200)
