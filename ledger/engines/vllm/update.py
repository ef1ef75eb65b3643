"""Bringing a server to a state: one update, in the order in which a failure can be survived.

Reading and verifying come first, while the server goes on serving. From the pause on no request
runs; it is resumed only when every worker has loaded the state and the caches are empty. A failure
in between leaves it paused, or serving what it served before: the caller decides what comes next.
Afterwards every worker confirms what it holds.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from weightledger.ledger.engines.vllm import UNSETTLED, StateRef
from weightledger.ledger.engines.vllm.server import Refused, Server

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds the workers took to read the tensors, and for which no request ran."""

    stage_s: float
    pause_s: float


@dataclass(frozen=True, slots=True)
class DrivenServer:
    """A server, the model's name in the ledger, and where its workers find the database."""

    server: Server
    model: str
    database: str | None

    def shows(self, target: StateRef) -> bool:
        """Whether it serves exactly that state: by its name, or by the workers' own word."""
        version = self.server.version()
        if version is None or version == UNSETTLED:
            return self.held(target)
        return target.named_by(version)

    def held(self, target: StateRef) -> bool:
        """Whether every worker holds that state, by its own word."""
        return self.server.confirm(self.model, target)

    def attempt(self, target: StateRef, proposal: str, since: StateRef) -> None:
        """Have every worker, which holds `since`, try a proposed state; Refused says why not."""
        self.server.attempt(self.model, target, proposal, database=self.database, since=since)

    def rename(self, target: StateRef) -> None:
        """Call a state that it shows by its newest seq, where weights have names.

        An older name of the same state is as true, so that may fail; having no name may not.
        """
        version = self.server.version()
        if version in (None, target.version):
            return
        try:
            self.server.name_weights(target.version)
        except Refused as error:
            if version == UNSETTLED:
                raise
            logger.warning("%s keeps the name %s: %s", self.server.url, version, error)

    def update(
        self,
        target: StateRef,
        names: list[str] | None,
        since: StateRef | None,
        while_paused: Callable[[], None],
    ) -> Timing:
        """Bring it to `target`. `names` changed since the state `since`, which it shows; None: all.

        `while_paused` changes what else belongs to the state, while no request runs.
        Raises EngineUnavailable; then `shows` tells whether anything was touched.
        """
        server = self.server
        versioned = server.version() is not None
        started = time.perf_counter()
        server.stage(self.model, target, database=self.database, names=names, since=since)
        staged = time.perf_counter()
        if versioned:
            server.start()  # for this backend only a word: nothing is touched before `load`
        paused = time.perf_counter()
        server.pause()
        if versioned:
            # Should one of the workers fail, the weights are not called what they were any more.
            server.name_weights(UNSETTLED)
        server.load(target)
        while_paused()
        if versioned:
            server.finish(target.version)
        server.reset_caches()
        server.resume()
        resumed = time.perf_counter()
        self._require(target)
        return Timing(staged - started, resumed - paused)

    def _require(self, target: StateRef) -> None:
        named = self.server.version() in (None, target.version)
        if not named or not self.held(target):
            raise Refused(f"{self.server.url} does not hold {target.version} after the update", 200)
        if self.server.paused():
            raise Refused(f"{self.server.url} stays paused", 200)
