"""Where monitoring comes together: one policy, and what it watches, tries and undoes."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from weightledger.ledger.engines import Engine, Live, SeveralVersions
from weightledger.ledger.errors import CorruptLedger, InvalidRequest, NotFound, Pruned
from weightledger.ledger.events import ROLLOUT_CHANGED, Event
from weightledger.ledger.monitoring.acting import Acting, WrittenLog
from weightledger.ledger.monitoring.cohorts import Cohorts
from weightledger.ledger.monitoring.collector import Collector
from weightledger.ledger.monitoring.deciding.chronicle import Series
from weightledger.ledger.monitoring.deciding.panels import GAUGE
from weightledger.ledger.monitoring.drift import DRIFT, Drift, Shift, StreamStatus
from weightledger.ledger.monitoring.policies import RollbackPolicy
from weightledger.ledger.monitoring.policy_files import rules_of
from weightledger.ledger.monitoring.ruled import RuledGuard
from weightledger.ledger.monitoring.samples import Sample
from weightledger.ledger.monitoring.served_beside import ServedBeside
from weightledger.ledger.monitoring.trials import Trials, TrialStatus, interrupted
from weightledger.ledger.monitoring.watching import Watch
from weightledger.ledger.projection.projector import Projector
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import ChangePolicy
from weightledger.ledger.writing.showing import Committed

logger = logging.getLogger("weightledger.ledger.manager")

_ALWAYS_TRIED = ("latency_ms", "failed")
_BY_REQUEST = frozenset({"latency_ms", "throughput", "failed"})


def watched(policy: RollbackPolicy, configured: Sequence[str], threshold: float) -> list[str]:
    """The metrics that decide on live traffic; none where automatic rollback is off."""
    if not policy.acts or (policy.name == "specification" and not threshold):
        return []
    named = policy.metrics
    if named is None:
        named = tuple(configured) if policy.trial is None else (*_ALWAYS_TRIED, *configured)
    return list(dict.fromkeys((*named, *policy.objectives)))


def _of_this_process(
    listener: Callable[[Sequence[Sample]], None],
) -> Callable[[Sequence[Sample]], None]:
    """A listener that is not told what replicas served: their states are compared by cohorts."""

    def told(samples: Sequence[Sample]) -> None:
        own = [one for one in samples if one.replica is None]
        if own:
            listener(own)

    return told


def require_consistent(policy: RollbackPolicy, threshold: float) -> None:
    """Raise InvalidRequest where policy and threshold contradict each other."""
    if policy.trial is not None and threshold == 0:
        raise InvalidRequest(
            f"policy {policy.name} tries updates, and auto_rollback_threshold 0 turns automatic "
            "rollback off: use policy off, or a threshold above 0",
            param="policy",
        )


class Supervision:
    """The monitoring of one model: decides on live traffic by a policy, and acts.

    The log says which policy rules, unless not `told`.
    """

    def __init__(
        self,
        log: WrittenLog,
        projector: Projector,
        collector: Collector,
        guard: RuledGuard,
        policy: RollbackPolicy,
        configured: Sequence[str],
        threshold: float,
        *,
        told: bool = True,
        drifting: Sequence[str] = (),
        detector: str = "adwin",
    ) -> None:
        self.policy = policy
        self._log = log
        self._engine: Engine = projector.engine
        self._acting = Acting(log, policy)
        self._trials: Trials | None = None
        self._served: ServedBeside | None = None
        if told:
            actor = Caller(actor=self._acting.actor)
            log.execute(ChangePolicy(policy.name, rules_of(policy), actor))
        guard.attach(log.history)
        metrics = watched(policy, configured, threshold)
        if policy.rollout is not None and told:
            named = policy.metrics or (*_ALWAYS_TRIED, *configured)
            beside = list(dict.fromkeys((*named, *policy.objectives)))
            cohorts = Cohorts(log, self._acting, policy, beside, threshold)
            collector.subscribe_samples(cohorts.samples)
            self._served = ServedBeside(log.history.store, cohorts)
        if policy.trial is not None and self._can_try(projector):
            self._trials = self._tried(log, projector, guard, metrics, threshold)
            collector.subscribe(self._trials.inferences)
            collector.subscribe_samples(_of_this_process(self._trials.samples))
            # One process has one memory, whichever of its states a request meets.
            metrics = [metric for metric in metrics if metric == GAUGE]
        if self._trials is None and told and (undecided := self._undecided()):
            logger.warning(undecided)
        if metrics:
            watch = Watch(log, self._acting, policy, metrics, threshold, collector)
            if _BY_REQUEST & set(metrics):
                collector.subscribe(watch.inferences)
            collector.subscribe_samples(_of_this_process(watch.samples))
        self._drift: Drift | None = None
        if drifting:
            self._drift = Drift(drifting, detector, self._drifted)
            collector.subscribe(self._drift.inferences)
            collector.subscribe_samples(self._drift.samples)

    def close(self) -> None:
        """Finish what is being decided."""
        if self._served is not None:
            self._served.close()
        if self._trials is not None:
            self._trials.close()
        self._acting.close()

    def after(self, committed: Committed) -> None:
        """Note an event, on the writer's thread."""
        if self._trials is not None:
            self._trials.after(committed)
        if self._served is not None and committed.event.kind == ROLLOUT_CHANGED:
            self._served.wake()

    def followed(self, event: Event) -> None:
        """Note that another process's events are visible; `event` is the last of them."""
        if self._trials is not None:
            self._trials.followed(event)
        if self._served is not None:
            self._served.wake()

    def lease(self, key: str | None) -> AbstractContextManager[Live]:
        """Hold the state that a request with this key meets."""
        if self._trials is None:
            return self._engine.lease()
        return self._trials.lease(key)

    def trial(self) -> TrialStatus | None:
        """The trial that runs, if one does."""
        return None if self._trials is None else self._trials.running()

    def evidence(self, trial: str) -> list[Series]:
        """What a trial that this process runs or ran showed by and by; empty of any other."""
        seen = None if self._trials is None else self._trials.evidence(trial)
        return [] if seen is None else seen.series()

    def drift(self) -> list[StreamStatus]:
        """The streams that are looked at for drift."""
        return [] if self._drift is None else self._drift.status()

    def promote(self, trial: str, caller: Caller) -> Event:
        """End a trial for the new state; NotFound unless it is the one that runs."""
        return self._required(trial).promote(trial, caller)

    def abort(self, trial: str, caller: Caller) -> Event:
        """End a trial for the state before it; NotFound unless it is the one that runs."""
        return self._required(trial).abort(trial, caller)

    def _drifted(self, shift: Shift) -> None:
        """Say so in the log, at the state that is live; nothing is undone for it."""
        facts = {
            "metric": shift.metric,
            "detector": shift.detector,
            "before": shift.before,
            "after": shift.after,
            "values": shift.values,
        }
        self._acting.soon(
            lambda: self._acting.observe(
                self._log.live.head.state_seq, DRIFT, f"{shift}; nothing is undone for it", facts
            )
        )

    def _required(self, trial: str) -> Trials:
        if self._trials is None:
            why = self._undecided() or f"policy {self.policy.name} tries nothing"
            raise NotFound(f"trial {trial!r} not found; {why}", param="id")
        return self._trials

    def _undecided(self) -> str | None:
        """What to say of a trial in the log, where this process tries nothing; None of none."""
        beside = interrupted(self._log)
        if beside is None:
            return None
        update = self._log.history.require(self._log.live.head.state_seq).name
        return (
            f"{update} is on trial beside seq:{beside}, and policy {self.policy.name} tries"
            " nothing: every request here meets it, undecided. Roll back to"
            f" seq:{beside}, or serve under a policy that tries, which goes on with it"
        )

    def _can_try(self, projector: Projector) -> bool:
        if projector.remote is None and isinstance(self._engine, SeveralVersions):
            return True
        logger.warning(
            "policy %s: this engine shows one state at a time, so that updates are not tried beside"
            " the state before but compared with it afterwards; such verdicts are confounded",
            self.policy.name,
        )
        return False

    def _tried(
        self,
        log: WrittenLog,
        projector: Projector,
        guard: RuledGuard,
        metrics: Sequence[str],
        threshold: float,
    ) -> Trials:
        assert isinstance(self._engine, SeveralVersions)
        beside = interrupted(log)
        held = None
        if beside is not None:
            try:
                held = projector.held(log.history, beside)
                logger.warning("a trial was interrupted: it goes on, and is counted anew")
            except (Pruned, CorruptLedger) as error:
                logger.error(
                    "a trial was interrupted and cannot go on, every request meets the new state,"
                    " undecided: the one before cannot be rebuilt: %s",
                    error,
                )
        trials = Trials(log, self._engine, self._acting, self.policy, metrics, threshold, held)
        guard.with_trials(trials.beside, trials.is_running)
        return trials
