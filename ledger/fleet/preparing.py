"""A replica's answer to what a writer proposes: the state built on the side, proven, and not shown.

On a thread of its own: what is shown waits for it no longer than the engine takes to prepare.
"""

import logging
import threading
from typing import Protocol

from weightledger.ledger.errors import Conflict, LedgerError, StorageError, Unavailable
from weightledger.ledger.events import Event, decode
from weightledger.ledger.projection.projector import LiveState
from weightledger.ledger.store.proposal_rows import (
    Attestation,
    Incarnation,
    ProposalRow,
    ProposalStore,
)

logger = logging.getLogger(__name__)

_LOOK_S = 0.05
_RETRY_S = 0.5  # after the database did not answer


class Rehearsing(Protocol):
    """The log whose live weights are prepared from; see `ledger.log.Log`."""

    @property
    def live(self) -> LiveState: ...

    def rehearse(self, event: Event, payload: bytes | None, proposal: str) -> bytes: ...


class Preparer:
    """Looks for proposals, and attests those that this replica is asked about."""

    def __init__(self, log: Rehearsing, store: ProposalStore, replica: Incarnation) -> None:
        self._log = log
        self._store = store
        self._replica = replica
        self._over: str | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-prepare", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        problem: str | None = None
        pause_s = _LOOK_S
        while not self._ending.wait(pause_s):
            try:
                self._look()
            except LedgerError as error:
                if str(error) != problem:  # an outage is one line
                    logger.warning("what is proposed is not prepared yet: %s", error)
                problem, pause_s = str(error), _RETRY_S
            else:
                problem, pause_s = None, _LOOK_S

    def _look(self) -> None:
        name = self._store.newest()
        if name is None or name == self._over:
            return
        proposal = self._store.read(name)
        if proposal is not None and self._replica in proposal.asked:
            said = self._built(proposal)
            if said is None:
                return
            self._store.attest(name, self._replica, said)
        self._over = name

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
