"""Reads what replicas measured while a rollout runs, for who decides about it.

Replicas write every two seconds while they know a rollout to run, each its own rows and one after
the other. So of each replica what is behind the last row is new; rows that were numbered earlier
and committed later are found by looking back a little.
"""

import logging
import threading
from typing import Protocol

from weightledger.ledger.errors import LedgerError
from weightledger.ledger.monitoring.cohorts import Cohorts
from weightledger.ledger.monitoring.stored import StoredMetrics
from weightledger.ledger.store.metric_rows import MOST_ROWS, MetricStore

logger = logging.getLogger("weightledger.ledger.manager")

_LOOK_S = 1.0
_LOOKS_BACK = 4  # within so many looks every row is committed


class Measured(Protocol):
    """Where replicas write what they measure; see `ledger.store`."""

    @property
    def metrics(self) -> MetricStore: ...


class ServedBeside:
    """Looks again and again while a rollout runs, on a thread of its own. `close` ends it."""

    def __init__(self, store: Measured, cohorts: Cohorts) -> None:
        self._stored = StoredMetrics(store.metrics)
        self._cohorts = cohorts
        self._rollout: int | None = None
        self._last: dict[str, int] = {}
        self._floors: list[int] = []
        self._due = threading.Event()
        self._ended = False
        self._due.set()  # one may have run before this process
        self._thread = threading.Thread(target=self._run, name="ledger-cohorts", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """A rollout may have begun or ended. Never waits."""
        self._due.set()

    def close(self) -> None:
        """Look no more."""
        self._ended = True
        self._due.set()
        self._thread.join()

    def _run(self) -> None:
        problem: str | None = None
        pause_s: float | None = None
        while True:
            self._due.wait(pause_s)
            self._due.clear()
            if self._ended:
                return
            try:
                pause_s = _LOOK_S if self._look() else None
            except LedgerError as error:
                if str(error) != problem:  # an outage is one line
                    logger.warning("what replicas measured cannot be read now: %s", error)
                problem, pause_s = str(error), _LOOK_S
            except Exception:
                logger.exception("what replicas measured cannot be judged now")
                pause_s = _LOOK_S
            else:
                problem = None

    def _look(self) -> bool:
        """Read what is new; whether a rollout runs."""
        awaited = self._cohorts.awaited()
        if awaited is None:
            return False
        rollout, metrics = awaited
        if rollout != self._rollout:
            self._rollout, self._last, self._floors = rollout, {}, []
        after = self._floors[0] if self._floors else 0
        while rows := self._stored.of_rollout(rollout, metrics, after):
            fresh = []
            for number, one in rows:
                if one.replica is not None and number > self._last.get(one.replica, 0):
                    fresh.append(one)
            for number, one in rows:
                if one.replica is not None:
                    self._last[one.replica] = max(number, self._last.get(one.replica, 0))
            if fresh:
                self._cohorts.measured(fresh)
            after = rows[-1][0]
            if len(rows) < MOST_ROWS:
                break
        self._floors = [*self._floors, after][-_LOOKS_BACK:]
        return True
