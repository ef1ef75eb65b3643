"""A replica's answer to what a writer proposes: the state built on the side, proven, and not shown.

On a thread of its own: what is shown waits for it no longer than the engine takes to prepare.
"""

import logging
import threading
import time
from typing import Protocol

from weightledger.ledger.errors import Conflict, LedgerError, StorageError, Unavailable
from weightledger.ledger.events import Event, decode
from weightledger.ledger.projection.projector import LiveState
from weightledger.ledger.sql.wakeups import Ending, Wake
from weightledger.ledger.store.proposal_rows import (
    Attestation,
    Incarnation,
    ProposalRow,
    ProposalStore,
)

logger = logging.getLogger(__name__)

_LOOK_S = 1.0  # the longest that it waits for a proposal at a time
_BUSY_S = 0.05  # before what it is on is looked for again
_RETRY_S = 0.5  # after the database did not answer


class Rehearsing(Protocol):
    """The log whose live weights are prepared from; see `ledger.log.Log`."""

    @property
    def live(self) -> LiveState: ...

    def rehearse(self, event: Event, payload: bytes | None, proposal: str) -> bytes: ...

    def forget(self) -> None: ...


class Preparer:
    """Waits for proposals, and attests those that this replica is asked about.

    What it built is kept for the event that comes of it, one at a time, and no longer than the
    proposal had time.
    """

    def __init__(
        self, log: Rehearsing, store: ProposalStore, replica: Incarnation, wake: Wake = "auto"
    ) -> None:
        self._log = log
        self._store = store
        self._replica = replica
        self._wake = wake
        self._over: str | None = None
        self._kept_until: float | None = None
        self._ending = Ending()
        self._thread = threading.Thread(target=self._run, name="ledger-prepare", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Answer no more, from now on."""
        self._ending.set()

    def close(self) -> None:
        """Answer no more."""
        self.end()
        self._thread.join()

    def _run(self) -> None:
        problem: str | None = None
        pause_s = 0.0
        while not self._ending.wait(pause_s):
            try:
                pause_s = 0.0 if self._look() else _BUSY_S
            except LedgerError as error:
                if str(error) != problem:  # an outage is one line
                    logger.warning("what is proposed is not prepared yet: %s", error)
                problem, pause_s = str(error), _RETRY_S
            else:
                problem = None
            if self._kept_until is not None and time.monotonic() >= self._kept_until:
                self._kept_until = None
                self._log.forget()

    def _look(self) -> bool:
        """Wait for a proposal and answer it; False where that cannot be done yet."""
        name = self._store.wait(self._over, self._patience_s(), self._wake, self._ending)
        if name is None or name == self._over:
            return True
        proposal = self._store.read(name)
        if proposal is not None and self._replica in proposal.asked:
            said = self._built(proposal)
            if said is None:
                return False
            self._kept_until = time.monotonic() + proposal.left_s
            self._store.attest(name, self._replica, said)
        self._over = name
        return True

    def _patience_s(self) -> float:
        if self._kept_until is None:
            return _LOOK_S
        return min(_LOOK_S, max(0.0, self._kept_until - time.monotonic()))

    def _built(self, proposal: ProposalRow) -> Attestation | None:
        """What became of it; None where it cannot be built yet."""
        try:
            event = decode(proposal.header)
            if self._log.live.head.node != event.parent:
                return None  # what it is on is not shown here yet
            digest = self._log.rehearse(event, proposal.payload, proposal.id)
            return Attestation(digest, None)
        except Conflict:
            return None  # it moved on meanwhile
        except (StorageError, Unavailable):
            raise
        except Exception as error:
            logger.warning("what is proposed cannot be shown here", exc_info=True)
            return Attestation(None, f"{type(error).__name__}: {error}")
