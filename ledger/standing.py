"""Where a managed model stands: what a manager is asked, in the specification's words.

Questions about the log itself are in `questions`; here are those that need what the manager holds
beside it: live weights, measurements, what is decided on them, the configuration.
"""

import logging
from dataclasses import replace
from typing import Any

from weightledger.ledger import adapters
from weightledger.ledger.config import DynamicUpdateConfig
from weightledger.ledger.errors import StorageError
from weightledger.ledger.events import Event
from weightledger.ledger.fleet.follower import Follower
from weightledger.ledger.log import Log
from weightledger.ledger.monitoring.collector import Collector
from weightledger.ledger.monitoring.deciding.chronicle import Series
from weightledger.ledger.monitoring.drift import StreamStatus
from weightledger.ledger.monitoring.ruled import RuledGuard
from weightledger.ledger.monitoring.supervision import Supervision
from weightledger.ledger.monitoring.trial_log import Trial, trial_named, trials
from weightledger.ledger.results import rollback_result, status, update_result
from weightledger.ledger.writing.handlers.rollbacks import answer_to

logger = logging.getLogger("weightledger.ledger.manager")


class ManagerReads:
    """The reads of a manager, which sets what they are answered from."""

    config: DynamicUpdateConfig
    log: Log
    collector: Collector
    supervision: Supervision
    _guard: RuledGuard
    follower: Follower | None = None
    _fault: str | None = None

    @property
    def has_evaluator(self) -> bool:
        """Whether candidates are scored before they are visible."""
        return self._guard.alone

    @property
    def fault(self) -> str | None:
        """Why the live weights are not known to be the head of the log; None when they are."""
        if self.follower is not None:
            said = self.follower.readiness()
            return None if said.ready else said.reason
        remote = self.log.projector.remote
        return (remote.fault if remote is not None else None) or self._fault

    @property
    def adapter_names(self) -> list[str]:
        """The adapters of the live state, each of which can be leased through."""
        return adapters.names(self.log.live.auxiliary)

    def update_result(self, event: Event) -> dict[str, Any]:
        """The specification's reply for an update's event, the same whenever it is asked for.

        An update that a remote engine could not be brought to has been rolled back.
        """
        return update_result(event, self.answer_to(event))

    def rollback_result(self, event: Event) -> dict[str, Any]:
        """The specification's reply for a rollback's event.

        The rollback stands: when its target cannot be read just then, the reply says so.
        """
        seq = event.body["to_event"]
        try:
            target = self.log.history.require(seq)
        except StorageError as error:
            logger.error("%s stands, but event %d cannot be read: %s", event.name, seq, error)
            return {
                "success": True,
                "rolled_back_to": event.body["to"],
                "timestamp": event.timestamp,
                "description": f"State after event {seq}, which cannot be read now",
            }
        return rollback_result(event, target)

    def list_versions(self) -> list[dict[str, Any]]:
        """Listed versions, newest first, in the specification's five fields."""
        return [version.to_dict() for version in self.log.versions()]

    def get_status(self) -> dict[str, Any]:
        """Where the model stands, the configuration, and the metrics of the last five updates."""
        return status(self.log.history, self.config, self.collector)

    def trials(self, limit: int = 20) -> list[Trial]:
        """The trial that runs, with what it has seen, and the last that ended; newest first."""
        listed = trials(self.log.history, limit)
        running = self.supervision.trial()
        return [
            replace(one, requests=(running.requests_old, running.requests_new))
            if running is not None and one.of == running.of
            else one
            for one in listed
        ]

    def trial_evidence(self, trial: str) -> list[Series]:
        """What a trial showed by and by: bounds of how much worse the new state is, and limits.

        Of the trial that runs here and of the last that did; empty of one that this process has
        not run. NotFound for an id that is no trial's.
        """
        return self.supervision.evidence(trial_named(self.log.history, trial).id)

    def drift(self) -> list[StreamStatus]:
        """The streams that are looked at for drift, with what is usual of them and what is now."""
        return self.supervision.drift()

    def metrics(self) -> dict[str, float]:
        """What is known of the live state now; what was not measured is absent."""
        return self._guard.current()

    def answer_to(self, event: Event) -> Event | None:
        """The rollback of an event that a remote engine could not be brought to."""
        log = self.log
        return answer_to(log.history, event) if log.projector.remote is not None else None
