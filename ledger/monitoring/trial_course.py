"""The course of a trial: how it begins, what it is judged by, and what follows from a verdict.

A verdict is in the log before requests see what follows from it. Updates that arrive meanwhile
stack: they join the trial, its evidence of harm stays, and the requests that promote it are counted
anew. A rollback undoes all of them.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from weightledger.ledger import events
from weightledger.ledger.errors import LedgerError
from weightledger.ledger.events import Event
from weightledger.ledger.history.trials import PROMOTED, trial_of
from weightledger.ledger.monitoring.acting import Acting, HeldBack, WrittenLog
from weightledger.ledger.monitoring.cases import Case
from weightledger.ledger.monitoring.deciding.chronicle import Chronicle
from weightledger.ledger.monitoring.deciding.deciders import Ruling
from weightledger.ledger.monitoring.deciding.panels import side_by_side
from weightledger.ledger.monitoring.policies import RollbackPolicy, TrialRules
from weightledger.ledger.monitoring.trial_log import DEGRADED, TIMED_OUT
from weightledger.ledger.monitoring.trial_sides import Sides

logger = logging.getLogger("weightledger.ledger.manager")

_REMEMBERED = 8
"""Trials that ended whose evidence can still be looked at."""


class Course:
    """The trial that runs, if one does. What changes it holds `lock`."""

    def __init__(
        self,
        log: WrittenLog,
        sides: Sides,
        acting: Acting,
        policy: RollbackPolicy,
        metrics: Sequence[str],
        threshold: float,
    ) -> None:
        assert policy.trial is not None
        self.log = log
        self.sides = sides
        self.policy = policy
        self.rules: TrialRules = policy.trial
        self.metrics = metrics
        self.lock = threading.RLock()
        self.moved = threading.Event()
        """Set where a trial begins or ends, or may be acted on again: when to look next."""
        self.case: Case | None = None
        self.since_newest = {False: 0, True: 0}
        self.timed_out = False
        self.evidence: Chronicle | None = None
        self.ended: deque[tuple[Event, Chronicle]] = deque(maxlen=_REMEMBERED)
        self._beside = -1
        self._acting = acting
        self._threshold = threshold

    # Under the lock

    @property
    def beside(self) -> int:
        """Seq of the state that is tried beside, which a rollback leads to.

        The settled one: but for one that another process promoted, or went back to, and tried
        something on before this one looked. The state that it holds is older then.
        """
        return self.sides.settled.seq if self.case is None else self._beside

    @property
    def due_s(self) -> float | None:
        """Seconds until the trial's time is over; None where nothing follows from that."""
        case = self.case
        if case is None or case.state != "open" or self.timed_out:
            return None
        return max(0.0, case.started + self.rules.timeout_s - time.monotonic(), case.pause_s)

    def follow(self, event: Event) -> None:
        """A state change that is live is on trial, or joins the one that is; a rollback ends it."""
        if event.kind == events.UPDATED:
            self.open(event)
        elif event.kind in (events.ADAPTER_LOADED, events.ADAPTER_UNLOADED):
            if self.case is None:
                self.settle()
            else:
                self.case.join(event)
        elif event.kind == events.ROLLED_BACK:
            self.settle()

    def open(self, event: Event) -> None:
        """An update is on trial, or joins the one that is tried beside the same state."""
        self.since_newest = {False: 0, True: 0}
        self.timed_out = False
        self.moved.set()
        beside = max(self.sides.settled.seq, (trial_of(event) or {}).get("beside", -1))
        if self.case is not None and self.case.state != "closed":
            if beside <= self._beside:
                self.case.join(event)
                return
            self.close()  # what was on trial is promoted
        self._beside = beside
        panel = side_by_side(self.policy, self.metrics, self._threshold)
        self.evidence = Chronicle(panel, self.rules.share)
        old = {self.sides.settled.seq}
        self.case = Case(event, {event.state_seq}, self.evidence, {}, old, beside=True)
        logger.info(
            "%s: %s is on trial, %.0f %% of the requests stay on seq %d",
            event.model,
            event.name,
            100 * (1 - self.rules.share),
            self.sides.settled.seq,
        )

    def settle(self) -> None:
        """Let every request meet what is live."""
        self.close()
        self.sides.settle()

    def close(self) -> None:
        """The trial that runs is over."""
        case, self.case = self.case, None
        self.moved.set()
        if case is not None:
            case.state = "closed"
            if self.evidence is not None:
                self.ended.append((case.update, self.evidence))
        self.evidence = None

    def judge(self) -> None:
        """Have it ended, if what is known by now ends it."""
        case = self.case
        if case is None or not case.may_act():
            return
        ruling = case.ruling()
        if ruling.known == "harmful":
            case.state = "acting"
            decided_us = time.time_ns() // 1000
            self._acting.soon(lambda: self._roll_back(case, ruling, decided_us))
        elif self._is_promoted(case, ruling):
            case.state = "acting"
            self._acting.soon(lambda: self._promote(case, ruling))

    def run_out(self) -> None:
        """Its time is over: end it as the policy says, or say once that nothing is decided."""
        case = self.case
        if case is None or case.state != "open" or self.timed_out:
            return
        ruling, requests = case.ruling(), dict(self.since_newest)
        outcome = self.rules.on_timeout
        lacking = self._lacking(case)
        if outcome == "promote" and (lacking or min(requests.values()) < self.policy.minimum):
            outcome = "wait"  # else it would be a guess
        if outcome == "wait":
            self.timed_out = True
            reason = (
                f"inconclusive after {self.rules.timeout_s:g} s: {requests[True]} requests met the"
                f" new state and {requests[False]} the old one"
                f"{_unknown(lacking)}; the trial goes on"
            )
            facts = {**ruling.evidence(), **self.facts(case)}
            self._acting.soon(
                lambda: self._acting.observe(case.of.state_seq, "inconclusive", reason, facts)
            )
            return
        case.state = "acting"
        if outcome == "promote":
            self._acting.soon(lambda: self._promote(case, ruling))
        else:
            decided_us = time.time_ns() // 1000
            self._acting.soon(lambda: self._roll_back(case, ruling, decided_us, TIMED_OUT))

    def facts(self, case: Case) -> dict[str, Any]:
        """What an event says of the trial."""
        return {
            "trial": {
                "beside": self.sides.settled.seq,
                "share": self.rules.share,
                "requests": [case.requests[False], case.requests[True]],
            }
        }

    def _is_promoted(self, case: Case, ruling: Ruling) -> bool:
        if min(self.since_newest.values()) < self.rules.requests or self._lacking(case):
            return False
        return self.rules.promote == "unharmed" or ruling.known == "harmless"

    def _lacking(self, case: Case) -> list[str]:
        return case.panel.lacking({*(self.policy.metrics or ()), *self.policy.objectives})

    # On the deciding thread

    def end(self, case: Case) -> None:
        """Let every request meet the state that was on trial: the verdict is in the log."""
        with self.lock:
            if self.case is case:
                self.settle()

    def _roll_back(
        self, case: Case, ruling: Ruling, decided_us: int, cause: str = DEGRADED
    ) -> None:
        with self.lock:
            back_to = self.beside
            promoted = self.case is not case and back_to == case.of.state_seq

        def newer() -> int | None:
            return case.of.state_seq if self.case is case else None

        def act() -> Event | None:
            if promoted:
                return None  # by another process, before this one got here: that verdict stands
            to = self.log.history.require(back_to).node
            of, facts = case.of.state_seq, self.facts(case)
            return self._acting.roll_back(
                of,
                to,
                ruling,
                cause,
                newer=newer,
                told=case.held_back,
                decided_us=decided_us,
                **facts,
            )

        self._carry_out(case, act)

    def _promote(self, case: Case, ruling: Ruling) -> None:
        evidence = {"decided_by": "policy", **ruling.evidence(), **self.facts(case)}
        reason = f"promoted by policy {self.policy.name}: no harm shown; {ruling}"
        self._carry_out(
            case,
            lambda: self._acting.observe(case.of.state_seq, PROMOTED, reason, evidence),
        )
        if case.state == "closed":
            self.end(case)

    def _carry_out(self, case: Case, act: Callable[[], Event | None]) -> None:
        """Close the case when its verdict is written; else it stays open, and is judged again."""
        of = case.of
        event = None
        try:
            event = act()
            if event is None:
                case.wait()
        except HeldBack as held:
            case.wait(told=held.told, refused=held.refused)
        except LedgerError:
            case.wait()
            raise
        finally:
            with self.lock:
                rolled_back = event is not None and event.kind == events.ROLLED_BACK
                if rolled_back or (event is not None and case.of is of):
                    case.state = "closed"
                elif case.state == "acting":
                    case.state = "open"
                    self.moved.set()


def _unknown(metrics: Sequence[str]) -> str:
    return f", too little is known of {', '.join(metrics)}" if metrics else ""
