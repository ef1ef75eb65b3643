"""Rollups on their way to the database, which may be away: the newest are kept, within bounds."""

import logging
import threading
from collections.abc import Sequence

from weightledger.ledger.monitoring.rollups import Rollup, Where
from weightledger.ledger.monitoring.stored import StoredMetrics

logger = logging.getLogger(__name__)

MOST_ROLLUPS = 4096
"""Rollups that wait for the database."""


class Outbox:
    """Writes rollups in small transactions. What moves them holds `moving`."""

    def __init__(self) -> None:
        self.stored: StoredMetrics | None = None
        self.moving = threading.Lock()
        self.waiting: list[Rollup] = []
        self.lost = 0
        self.fault: str | None = None

    def rollups(self, where: Where) -> list[Rollup]:
        """What is written, and what waits, in no order."""
        stored = self.stored.rollups(where) if self.stored is not None else []
        return [*stored, *(one for one in self.waiting if one in where)]

    def write(self, fresh: Sequence[Rollup]) -> None:
        """Write what waits and what is fresh; what fails is kept, within bounds."""
        self.waiting += fresh
        waiting = list(self.waiting)
        if not waiting:
            return
        if self.stored is not None:
            try:
                self.stored.write(waiting)
            except Exception as error:  # noqa: BLE001  (whatever it is, requests go on)
                self._failed(error)
                return
        del self.waiting[: len(waiting)]
        if self.fault is not None:
            self.fault = None
            logger.warning("metrics are written again; %d values were lost so far", self.lost)

    def _failed(self, error: Exception) -> None:
        excess = max(0, len(self.waiting) - MOST_ROLLUPS)
        self.lost += sum(one.count for one in self.waiting[:excess])
        del self.waiting[:excess]
        if self.fault is None or excess:
            logger.error(
                "metrics cannot be written: %s; %d rollups are kept, %d values were lost so far",
                error,
                len(self.waiting),
                self.lost,
            )
        self.fault = str(error)
