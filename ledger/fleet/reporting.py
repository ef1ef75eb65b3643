"""What a replica says of itself in the database: its lease, and which states it showed since when.

On a thread of its own, so that showing a state waits for nothing. What cannot be said now is said
later, with the age it has by then.
"""

import importlib.metadata
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from weightledger.ledger.errors import LedgerError, ReplicaSuperseded
from weightledger.ledger.store.replica_rows import ReplicaStanding, ReplicaStore, Shown

logger = logging.getLogger(__name__)

LEASE_S = 10.0
"""How long a replica that is not heard of counts as being there."""

_RENEW_S = 3.0
_LEAST_S = 0.2  # between two reports: five a second at most
_RETRY_S = 0.5
_LAST_WORDS_S = 5.0


class Reporter:
    """Reports as one replica; `standing` says how it stands, `superseded` is told of a successor.
    A state that it names is one that `shown` was called with before.

    The incarnation makes it the only one: what an earlier process of the same name reports is
    refused from then on.
    """

    def __init__(
        self,
        store: ReplicaStore,
        replica: str,
        url: str | None,
        standing: Callable[[], ReplicaStanding],
        superseded: Callable[[str], None],
    ) -> None:
        self._store = store
        self.replica = replica
        self._standing = standing
        self._superseded = superseded
        self._waiting: deque[Shown] = deque()
        self._number = 0
        self._due, self._ending = threading.Event(), threading.Event()
        host = f"{socket.gethostname()} pid {os.getpid()}"
        release = importlib.metadata.version("weightledger")
        self.incarnation = store.begin(replica, host, url, release, LEASE_S)
        self._thread = threading.Thread(target=self._run, name="ledger-report", daemon=True)

    def start(self) -> None:
        """Begin to report by itself."""
        self._thread.start()

    def shown(self, position: int | None, seq: int | None, digest: bytes | None) -> None:
        """A state is shown from now on; None for none any more. Never waits."""
        self._number += 1
        self._waiting.append(Shown(self._number, time.monotonic(), position, seq, digest))
        self._due.set()

    def changed(self) -> None:
        """How the replica stands is another than it was. Never waits."""
        self._due.set()

    def close(self) -> None:
        """Say what is not said yet, and that nothing is shown any more."""
        self.shown(None, None, None)
        self._ending.set()
        self._due.set()
        self._thread.join(_LAST_WORDS_S)

    def _run(self) -> None:
        problem: str | None = None
        while True:
            self._due.wait(_RENEW_S)
            self._due.clear()
            last = self._ending.is_set()
            try:
                self._report()
            except ReplicaSuperseded as error:
                self._superseded(str(error))
                return
            except LedgerError as error:
                if problem is None:  # an outage is one line
                    logger.warning("%s cannot be reported, later again: %s", self.replica, error)
                problem = str(error)
                self._due.set()
                self._ending.wait(_RETRY_S)
            else:
                problem = None
            if last:
                return
            self._ending.wait(_LEAST_S)

    def _report(self) -> None:
        waiting: list[Shown] = []

        def said() -> tuple[ReplicaStanding, list[Shown]]:
            standing = self._standing()
            waiting[:] = self._waiting  # after it: whatever it names is among them
            return standing, waiting

        lease_s = 0.0 if self._ending.is_set() else LEASE_S
        self._store.report(self.replica, self.incarnation, said, lease_s)
        for _ in waiting:
            self._waiting.popleft()
