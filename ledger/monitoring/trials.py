"""Trials: a new state meets a share of the requests, the state before it the others.

The state that is settled is held as a version of its own, which costs what changed. Whatever is
newer is on trial from the moment it is visible: a coin decides for each request which of the two it
meets, the same for all that come with one key. A trial ends by a verdict that is in the log before
requests see what follows from it: promoted, rolled back, or timed out.

Updates that arrive meanwhile stack: they join the trial, its evidence of harm stays, and the
requests that promote it are counted anew. A rollback undoes all of them. After a crash the trial
goes on with the settled state read from the log; what was measured before is not counted again.
"""

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from weightledger.ledger import events
from weightledger.ledger.engines import Held, Live, SeveralVersions
from weightledger.ledger.errors import IdempotencyMismatch, InvalidRequest, LedgerError, NotFound
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies import Observed
from weightledger.ledger.monitoring.acting import Acting, WrittenLog
from weightledger.ledger.monitoring.cases import Case
from weightledger.ledger.monitoring.deciding.deciders import Ruling
from weightledger.ledger.monitoring.deciding.panels import side_by_side
from weightledger.ledger.monitoring.policies import RollbackPolicy
from weightledger.ledger.monitoring.samples import Inference, Sample
from weightledger.ledger.monitoring.trial_log import (
    ABORTED,
    PROMOTED,
    TIMED_OUT,
    is_promoted,
    trial_of,
)
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import Observe, RollBack
from weightledger.ledger.writing.showing import Committed

logger = logging.getLogger("weightledger.ledger.manager")

_LOOK_S = 0.25


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
        held: Held | None = None,
    ) -> None:
        assert policy.trial is not None
        self._log = log
        self._engine = engine
        self._acting = acting
        self._policy = policy
        self._rules = policy.trial
        self._metrics = metrics
        self._threshold = threshold
        self._lock = threading.RLock()
        self._case: Case | None = None
        self._since_newest = {False: 0, True: 0}
        self._timed_out = False
        self._seen = -1
        self._settled: Held = held or engine.hold()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="ledger-trials", daemon=True)
        if held is not None:
            self._open(log.history.require(log.live.head.state_seq))
        self._thread.start()

    def close(self) -> None:
        """Stop looking at the time."""
        self._stop.set()
        self._thread.join()

    def beside(self) -> int:
        """Seq of the settled state, which new ones are tried beside."""
        return self._settled.seq

    def is_running(self) -> bool:
        """Whether something is on trial."""
        return self._case is not None

    # Requests

    def lease(self, key: str | None) -> AbstractContextManager[Live]:
        """Hold the state that this request meets: the settled one, or the one on trial."""
        settled = self._settled
        live = self._engine.lease()
        with live as version:
            if version.digest == settled.digest or self._meets_new(key, settled.seq):
                return live
        return settled.leased()

    def _meets_new(self, key: str | None, settled: int) -> bool:
        if key is None:
            return random.random() < self._rules.share
        digest = hashlib.blake2b(f"{settled}\0{key}".encode(errors="replace"), digest_size=8)
        return int.from_bytes(digest.digest(), "big") < self._rules.share * 2**64

    # What happens

    def after(self, committed: Committed) -> None:
        """Note an event, on the writer's thread."""
        event = committed.event
        with self._lock:
            if event.kind == events.UPDATED:
                self._open(event)
            elif event.kind in (events.ADAPTER_LOADED, events.ADAPTER_UNLOADED):
                if self._case is None:
                    self._settle()
                else:
                    self._case.join(event)
            elif event.kind == events.ROLLED_BACK:
                self._settle()

    def inferences(self, told: Sequence[Inference]) -> None:
        """Take in finished requests, in order."""
        with self._lock:
            case = self._case
            if case is None:
                return
            before = dict(case.requests)
            case.infer(told)
            for new in (False, True):
                self._since_newest[new] += case.requests[new] - before[new]
            self._judge(case)

    def samples(self, told: Sequence[Sample]) -> None:
        """Take in single values, but for evaluators': those were judged before."""
        own = [one for one in told if one.source == "pushed" and one.metric in self._metrics]
        with self._lock:
            if self._case is not None and own:
                self._case.sample(own)
                self._judge(self._case)

    # What people ask for

    def running(self) -> TrialStatus | None:
        """The trial that runs, if one does."""
        with self._lock:
            case = self._case
            if case is None:
                return None
            return TrialStatus(
                case.of.name,
                case.of.state_seq,
                self._settled.seq,
                self._rules.share,
                case.requests[True],
                case.requests[False],
                time.monotonic() - case.started,
                case.ruling(),
            )

    def promote(self, trial: str, caller: Caller) -> Event:
        """End a trial for the new state, because somebody says so."""
        if (known := self._answered(trial, caller)) is not None:
            return known
        with self._lock:
            case = self._require(trial)
            ruling = case.ruling()
            facts = {"decided_by": "person", **self._facts(case), **ruling.evidence()}
            body = Observed(
                case.of.state_seq, PROMOTED, self._policy.name, "promoted by hand", facts
            )
        event = self._log.execute(Observe(body, caller))
        self._end(case)
        return event

    def abort(self, trial: str, caller: Caller) -> Event:
        """End a trial for the state before it, because somebody says so."""
        if (known := self._answered(trial, caller, aborted=True)) is not None:
            return known
        with self._lock:
            case = self._require(trial)
            facts = {
                "policy": self._policy.name,
                "decided_by": "person",
                **self._facts(case),
                **case.ruling().evidence(),
            }
            to = f"seq:{self._settled.seq}"
        return self._log.execute(RollBack(to, caller, ABORTED, "the trial was aborted", facts))

    def _answered(self, trial: str, caller: Caller, *, aborted: bool = False) -> Event | None:
        """The event that this idempotency key has led to; the trial has ended with it."""
        key, history = caller.idempotency_key, self._log.history
        event = None if key is None else history.store.by_key(key)
        if event is None:
            return None
        body = event.body
        cause, of = (
            (body.get("cause"), body.get("from_seq"))
            if event.kind == events.ROLLED_BACK
            else (body.get("verdict"), body.get("of"))
        )
        same = cause == (ABORTED if aborted else PROMOTED)
        if not same or of is None or not _is_called(history.require(of), trial):
            raise IdempotencyMismatch(
                f"idempotency key {key!r} was used for another request, {event.name}"
            )
        return event

    def _require(self, trial: str) -> Case:
        case = self._case
        if case is None or not _is_called(case.of, trial):
            running = "none is running" if case is None else f"{case.of.name} is running"
            raise NotFound(f"trial {trial!r} not found; {running}", param="id")
        if case.state != "open":
            raise InvalidRequest(f"trial {trial!r} is being decided already", param="id")
        return case

    # Under the lock

    def _open(self, event: Event) -> None:
        self._since_newest = {False: 0, True: 0}
        self._timed_out = False
        if self._case is not None and self._case.state != "closed":
            self._case.join(event)
            return
        panel = side_by_side(self._policy, self._metrics, self._threshold)
        old = {self._settled.seq}
        self._case = Case(event, {event.state_seq}, panel, {}, old, beside=True)
        logger.info(
            "%s: %s is on trial, %.0f %% of the requests stay on seq %d",
            event.model,
            event.name,
            100 * (1 - self._rules.share),
            self._settled.seq,
        )

    def _settle(self) -> None:
        """Let every request meet what is live."""
        if self._case is not None:
            self._case.state = "closed"
        self._case = None
        self._settled = self._engine.hold()

    def _judge(self, case: Case) -> None:
        if case.state != "open":
            return
        ruling = case.ruling()
        if ruling.known == "harmful":
            case.state = "acting"
            self._acting.soon(lambda: self._roll_back(case, ruling))
        elif self._is_promoted(ruling):
            case.state = "acting"
            self._acting.soon(lambda: self._promote(case, ruling))

    def _is_promoted(self, ruling: Ruling) -> bool:
        if min(self._since_newest.values()) < self._rules.requests:
            return False
        return self._rules.promote == "unharmed" or ruling.known == "harmless"

    # On the deciding thread

    def _roll_back(self, case: Case, ruling: Ruling, cause: str = "degraded") -> None:
        def newer() -> int | None:
            return case.of.state_seq if self._case is case else None

        def act() -> Event | None:
            to = self._log.history.require(self._settled.seq).node
            return self._acting.roll_back(
                case.of.state_seq, to, ruling, cause, newer=newer, **self._facts(case)
            )

        self._carry_out(case, act)

    def _promote(self, case: Case, ruling: Ruling) -> None:
        evidence = {"decided_by": "policy", **ruling.evidence(), **self._facts(case)}
        reason = f"promoted by policy {self._policy.name}: no harm shown; {ruling}"
        self._carry_out(
            case,
            lambda: self._acting.observe(case.of.state_seq, PROMOTED, reason, evidence),
        )
        if case.state == "closed":
            self._end(case)

    def _carry_out(self, case: Case, act: Callable[[], Event | None]) -> None:
        """Close the case when its verdict is written; else it stays open, and is judged again."""
        of = case.of
        event = None
        try:
            event = act()
        finally:
            with self._lock:
                rolled_back = event is not None and event.kind == events.ROLLED_BACK
                if rolled_back or (event is not None and case.of is of):
                    case.state = "closed"
                elif case.state == "acting":
                    case.state = "open"

    def _end(self, case: Case) -> None:
        with self._lock:
            if self._case is case:
                self._settle()

    def _facts(self, case: Case) -> dict[str, Any]:
        return {
            "trial": {
                "beside": self._settled.seq,
                "share": self._rules.share,
                "requests": [case.requests[False], case.requests[True]],
            }
        }

    # The clock, and other processes

    def _look(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                with self._lock:
                    case = self._case
                with self._engine.lease() as live:
                    moved = live.digest != self._settled.digest
                if (case is None) == moved:
                    self._catch_up()
                elif case is not None:
                    self._look_at(case)
            except LedgerError as error:
                logger.warning("the trial cannot be looked after now: %s", error)
            except Exception:
                logger.exception("the trial cannot be looked after now")

    def _look_at(self, case: Case) -> None:
        head = self._log.live.head.seq
        if head != self._seen:
            self._seen = head
            if is_promoted(self._log.history, case.of.state_seq):  # by another process
                self._end(case)
                return
        with self._lock:
            late = time.monotonic() - case.started >= self._rules.timeout_s
            if not late or case.state != "open" or self._timed_out:
                return
            ruling, requests = case.ruling(), dict(self._since_newest)
            enough = min(requests.values()) >= self._policy.minimum
            outcome = self._rules.on_timeout if enough else "wait"
            if self._rules.on_timeout == "rollback":
                outcome = "rollback"
            self._timed_out = True
            if outcome != "wait":
                case.state = "acting"
        if outcome == "promote":
            self._acting.soon(lambda: self._promote(case, ruling))
        elif outcome == "rollback":
            self._acting.soon(lambda: self._roll_back(case, ruling, TIMED_OUT))
        else:
            reason = (
                f"inconclusive after {self._rules.timeout_s:g} s: {requests[True]} requests met the"
                f" new state and {requests[False]} the old one; the trial goes on"
            )
            facts = {**ruling.evidence(), **self._facts(case)}
            self._acting.soon(
                lambda: self._acting.observe(case.of.state_seq, "inconclusive", reason, facts)
            )

    def _catch_up(self) -> None:
        """Another process wrote: what is live goes on trial, unless that is decided already."""
        event = self._log.history.require(self._log.live.head.state_seq)
        with self._lock, self._engine.lease() as live:
            if live.digest == self._settled.digest:
                self._settle()
            elif self._case is not None:
                return
            elif event.kind == events.UPDATED and not is_promoted(self._log.history, event.seq):
                self._open(event)
            else:
                self._settle()


def _is_called(update: Event, trial: str) -> bool:
    """Whether an update's trial has this name: the update's id, with or without its time."""
    return trial in (update.name, update.name.rpartition("_")[0])


def interrupted(log: WrittenLog) -> int | None:
    """Seq of the state that was settled when the process ended during a trial; else None."""
    event = log.history.require(log.live.head.state_seq)
    trial = trial_of(event)
    if trial is None or is_promoted(log.history, event.seq):
        return None
    beside: int = trial["beside"]
    return beside if log.history.require(beside).node != event.node else None
