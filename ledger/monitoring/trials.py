"""Trials: a new state meets a share of the requests, the state before it the others.

Whatever is newer than the settled state is on trial from the moment it is visible (`trial_sides`).
A trial ends by a verdict: promoted, rolled back, or timed out (`trial_course`). After a crash it
goes on with the settled state read from the log; what was measured before is not counted again.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from weightledger.ledger import events
from weightledger.ledger.engines import HeldVersion, Live, SeveralVersions
from weightledger.ledger.errors import (
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
)
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies import Observed
from weightledger.ledger.history.trials import ABORTED, BY_PERSON, PROMOTED, on_trial, trial_of
from weightledger.ledger.monitoring.acting import Acting, WrittenLog
from weightledger.ledger.monitoring.cases import Case
from weightledger.ledger.monitoring.deciding.chronicle import Chronicle
from weightledger.ledger.monitoring.deciding.deciders import Ruling
from weightledger.ledger.monitoring.policies import RollbackPolicy
from weightledger.ledger.monitoring.samples import Inferences, Sample
from weightledger.ledger.monitoring.trial_clock import Clock
from weightledger.ledger.monitoring.trial_course import Course
from weightledger.ledger.monitoring.trial_log import is_called
from weightledger.ledger.monitoring.trial_sides import Sides
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import Observe, RollBack
from weightledger.ledger.writing.showing import Committed

_PROMOTIONS = 3


@dataclass(frozen=True, slots=True)
class TrialStatus:
    """A trial as people see it; `node` is the settled state's, `requests` what each side served."""

    id: str
    of: int
    beside: int
    share: float
    requests_new: int
    requests_old: int
    seconds: float
    ruling: Ruling


class Trials:
    """The trials of one model. Safe to use from any thread; leasing takes no lock."""

    def __init__(
        self,
        log: WrittenLog,
        engine: SeveralVersions,
        acting: Acting,
        policy: RollbackPolicy,
        metrics: Sequence[str],
        threshold: float,
        held: HeldVersion | None = None,
    ) -> None:
        assert policy.trial is not None
        self._log = log
        self._sides = Sides(engine, policy.trial.share, held)
        self._course = Course(log, self._sides, acting, policy, metrics, threshold)
        if held is not None:
            update = on_trial(log.history)
            self._course.open(update or log.history.require(log.live.head.state_seq))
        self._clock = Clock(self._course)

    def close(self) -> None:
        """Stop looking after the trial."""
        self._clock.close()

    def beside(self) -> int:
        """Seq of the state that new ones are tried beside."""
        return self._course.beside

    def is_running(self) -> bool:
        """Whether something is on trial."""
        return self._course.case is not None

    def lease(self, key: str | None) -> AbstractContextManager[Live]:
        """Hold the state that this request meets: the settled one, or the one on trial."""
        return self._sides.lease(key)

    # What happens

    def after(self, committed: Committed) -> None:
        """Note an event, on the writer's thread."""
        with self._course.lock:
            self._course.follow(committed.event)
        if committed.event.kind == events.OBSERVED:
            self._clock.wake()  # it may be the verdict that somebody approved

    def followed(self, event: Event) -> None:
        """Note that another process's events are visible: one may be on trial, or end a trial."""
        self._clock.wake()

    def inferences(self, told: Inferences) -> None:
        """Take in finished requests, in order."""
        course = self._course
        with course.lock:
            case = course.case
            if case is None:
                return
            before = dict(case.requests)
            case.infer(told)
            for new in (False, True):
                course.since_newest[new] += case.requests[new] - before[new]
            course.judge()

    def samples(self, told: Sequence[Sample]) -> None:
        """Take in single values that were pushed.

        But for those of which nobody said which state they are of: two are live.
        """
        course = self._course
        own = [
            one
            for one in told
            if one.source == "pushed" and one.metric in course.metrics and not one.supposed
        ]
        with course.lock:
            if course.case is not None and own:
                course.case.sample(own)
                course.judge()

    # What people ask for

    def running(self) -> TrialStatus | None:
        """The trial that runs, if one does."""
        course = self._course
        with course.lock:
            case = course.case
            if case is None:
                return None
            return TrialStatus(
                case.update.name,
                case.update.state_seq,
                self._sides.settled.seq,
                course.rules.share,
                case.requests[True],
                case.requests[False],
                time.monotonic() - case.started,
                case.ruling(),
            )

    def evidence(self, trial: str) -> Chronicle | None:
        """What this process saw of a trial, the one that runs or one of the last; else None."""
        course = self._course
        with course.lock:
            known = [*course.ended]
            if course.case is not None and course.evidence is not None:
                known.append((course.case.update, course.evidence))
        return next((one for of, one in reversed(known) if is_called(of.name, trial)), None)

    def promote(self, trial: str, caller: Caller) -> Event:
        """End a trial for the new state, because somebody says so."""
        if (known := self._answered(trial, caller)) is not None:
            return known
        course = self._course
        for left in reversed(range(_PROMOTIONS)):
            self._clock.look()
            with course.lock:
                case = self._require(trial)
                of = case.of.state_seq
                facts = {"decided_by": BY_PERSON, **course.facts(case), **case.ruling().evidence()}
                body = Observed(of, PROMOTED, course.policy.name, "promoted by hand", facts)
            # What arrives meanwhile, or while somebody else is to approve it, is not promoted.
            asked = caller if caller.expected_seq is not None else replace(caller, expected_seq=of)
            try:
                event = self._log.execute(Observe(body, asked))
            except PreconditionFailed:
                if caller.expected_seq is not None or not left:
                    raise
            else:
                course.end(case)
                return event
        raise AssertionError("the last one returns or raises")

    def abort(self, trial: str, caller: Caller) -> Event:
        """End a trial for the state before it, because somebody says so."""
        if (known := self._answered(trial, caller, aborted=True)) is not None:
            return known
        self._clock.look()
        course = self._course
        with course.lock:
            case = self._require(trial)
            facts = {
                "policy": course.policy.name,
                "decided_by": BY_PERSON,
                **course.facts(case),
                **case.ruling().evidence(),
            }
            to = f"seq:{course.beside}"
        return self._log.execute(RollBack(to, caller, ABORTED, "the trial was aborted", facts))

    def _answered(self, trial: str, caller: Caller, *, aborted: bool = False) -> Event | None:
        """The event that this idempotency key has led to; the trial has ended with it."""
        key, history = caller.idempotency_key, self._log.history
        event = None if key is None else history.store.by_key(key)
        if event is None or event.kind == events.APPROVAL_REQUESTED:
            return None  # of one that waits the writer knows what became of it
        body = event.body
        cause, of = (
            (body.get("cause"), body.get("from_seq"))
            if event.kind == events.ROLLED_BACK
            else (body.get("verdict"), body.get("of"))
        )
        same = cause == (ABORTED if aborted else PROMOTED)
        if not same or of is None or not is_called(history.require(of).name, trial):
            raise IdempotencyMismatch(
                f"idempotency key {key!r} was used for another request, {event.name}"
            )
        return event

    def _require(self, trial: str) -> Case:
        case = self._course.case
        if case is None or not is_called(case.update.name, trial):
            running = "none is running" if case is None else f"{case.update.name} is running"
            raise NotFound(f"trial {trial!r} not found; {running}", param="id")
        if case.state != "open":
            raise InvalidRequest(f"trial {trial!r} is being decided already", param="id")
        return case


def interrupted(log: WrittenLog) -> int | None:
    """Seq of the state that was settled when the process ended during a trial; else None."""
    event = on_trial(log.history)
    trial = None if event is None else trial_of(event)
    if event is None or trial is None:
        return None
    beside: int = trial["beside"]
    return beside if log.history.require(beside).node != event.node else None
