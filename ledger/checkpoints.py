"""What a manager does by itself after an event: name checkpoints, and retire old names."""

import logging

from weightledger.ledger import events
from weightledger.ledger.config import DynamicUpdateConfig
from weightledger.ledger.errors import CorruptLedger, LedgerError
from weightledger.ledger.history.intact import skipped
from weightledger.ledger.log import Log
from weightledger.ledger.writing.showing import Committed

logger = logging.getLogger("weightledger.ledger.manager")


class Checkpoints:
    """Names and snapshots the state of a log each `checkpoint_interval` updates.

    Works on the writer's thread. The event that it follows is durable and visible, so what fails
    here is logged, and due again at the next one.
    """

    def __init__(self, log: Log, config: DynamicUpdateConfig) -> None:
        self._log = log
        self._config = config
        self._named = self._last_named()

    def after(self, committed: Committed) -> None:
        """Name a checkpoint if one is due, and retire old names."""
        event = committed.event
        if event.kind == events.UPDATED and self._config.enable_versioning:
            self._checkpoint()
        elif event.kind == events.VERSION_CREATED:
            self._named = max(self._named, event.counts.applied)
            self._retire()

    def _checkpoint(self) -> None:
        applied, interval = self._log.live.head.counts.applied, self._config.checkpoint_interval
        if applied // interval <= self._named // interval:
            return
        try:
            self._log.create_version(f"Checkpoint after {applied} updates")
            self._log.snapshot()
        except LedgerError as error:
            logger.warning("no checkpoint after %d updates, will try again: %s", applied, error)

    def _retire(self) -> None:
        try:
            days = self._config.min_version_age_days
            self._log.retire_versions(keep=self._config.max_versions, min_age_s=days * 86_400)
        except LedgerError as error:
            logger.warning("old versions stay listed, will try again: %s", error)

    def _last_named(self) -> int:
        """How many updates had been applied when the newest version was named."""
        counts = self._log.live.head.counts
        try:
            newest = self._log.history.store.by_number(events.VERSIONS, counts.versions - 1)
        except CorruptLedger as error:
            skipped(error, "the next checkpoint is due at once")
            return 0
        return newest.counts.applied if newest else 0
