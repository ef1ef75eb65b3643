"""A rollout's cohorts as the two sides of a comparison, and the end that follows from it.

What is pushed says which replica served it at which seq. Which side that is follows from the log:
the replicas that are to show what is rolled out are the new side, the others the old one. A sample
counts if its state is one of its side's, so that late ones and those of before decide nothing.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weightledger.ledger.errors import LedgerError, NotFound
from weightledger.ledger.history import rollouts
from weightledger.ledger.history.rollouts import ABORTED, FINISHED, Rollout
from weightledger.ledger.monitoring.acting import Acting, WrittenLog
from weightledger.ledger.monitoring.deciding.deciders import Panel, Ruling
from weightledger.ledger.monitoring.deciding.panels import by_cohorts
from weightledger.ledger.monitoring.policies import RollbackPolicy, RolloutRules
from weightledger.ledger.monitoring.samples import Sample
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import EndRollout

logger = logging.getLogger("weightledger.ledger.manager")

_CAUSE = "policy"
_ASK_AGAIN_S = 5.0


@dataclass(slots=True)
class _Sides:
    """What is known of one rollout; `replicas` are those that were heard of, by side."""

    rollout: Rollout
    panel: Panel
    replicas: dict[bool, set[str]] = field(default_factory=lambda: {False: set(), True: set()})
    acting: bool = False
    told: bool = False
    asked_again: float = 0.0


class Cohorts:
    """Decides about the rollout that runs, by what is pushed. Works on the collecting thread."""

    def __init__(
        self,
        log: WrittenLog,
        acting: Acting,
        policy: RollbackPolicy,
        metrics: Sequence[str],
        threshold: float,
    ) -> None:
        assert policy.rollout is not None
        self._rules: RolloutRules = policy.rollout
        self._log = log
        self._acting = acting
        self._policy = policy
        self._metrics = metrics
        self._threshold = threshold
        self._lock = threading.Lock()
        self._sides: _Sides | None = None

    def samples(self, told: Sequence[Sample]) -> None:
        """Take in what replicas served."""
        own = [one for one in told if one.replica is not None and one.metric in self._metrics]
        if not own:
            return
        with self._lock:
            sides = self._current()
            if sides is None:
                return
            counted = [(one, side) for one in own if (side := self._side(sides, one)) is not None]
            for metric in {one.metric for one, _ in counted}:
                values = [(one.value, side) for one, side in counted if one.metric == metric]
                sides.panel.observe(
                    metric,
                    np.array([value for value, _ in values]),
                    np.array([side for _, side in values], dtype=bool),
                )
            self._judge(sides)

    # Under the lock

    def _current(self) -> _Sides | None:
        """The rollout that runs by the log, as its newest event left it."""
        rollout = rollouts.newest(self._log.history.store)
        if rollout is None or not rollout.running:
            self._sides = None
        elif self._sides is None or self._sides.rollout.id != rollout.id:
            panel = by_cohorts(self._policy, self._metrics, self._threshold)
            self._sides = _Sides(rollout, panel)
        else:
            self._sides.rollout = rollout
        return self._sides

    def _side(self, sides: _Sides, sample: Sample) -> bool | None:
        """Whether a sample is of the new side; None for one that is of neither."""
        rollout, replica = sides.rollout, sample.replica
        assert replica is not None
        new = rollouts.cohort(rollout.id, replica) < rollout.percent
        held = rollout.to if rollout.base is None else rollout.base
        node = self._log.history.require(sample.seq).node
        # One side is held at a state; the other follows the head, and has left that state.
        is_held = new if rollout.base is None else not new
        if (node == held) != is_held:
            return None
        if sample.at_us < self._log.history.require(rollout.started_seq).recorded_at:
            return None
        sides.replicas[new].add(replica)
        return new

    def _judge(self, sides: _Sides) -> None:
        if sides.acting or time.monotonic() < sides.asked_again:
            return
        ruling = sides.panel.ruling()
        if ruling.known == "harmful":
            status = ABORTED
        elif self._is_enough(sides, ruling):
            status = FINISHED
        else:
            return
        sides.acting = True
        self._acting.soon(lambda: self._end(sides, status, ruling))

    def _is_enough(self, sides: _Sides, ruling: Ruling) -> bool:
        finish = self._rules.finish
        if finish == "never" or (finish == "proven" and ruling.known != "harmless"):
            return False
        return any(
            min(sides.panel.seen(metric, new=side) for side in (False, True)) >= self._rules.values
            for metric in self._metrics
        )

    # On the deciding thread

    def _end(self, sides: _Sides, status: str, ruling: Ruling) -> None:
        try:
            self._carry_out(sides, status, ruling)
        except NotFound:
            logger.info("%s ended meanwhile", sides.rollout.id)
        except LedgerError:
            sides.asked_again = time.monotonic() + _ASK_AGAIN_S
            sides.acting = False
            raise

    def _carry_out(self, sides: _Sides, status: str, ruling: Ruling) -> None:
        rollout, name = sides.rollout, self._policy.name
        how = "no harm shown" if status == FINISHED else "harm shown"
        why = f"{status} by policy {name}: {how}; {ruling}"
        evidence = {"policy": name, "decided_by": "policy", **ruling.evidence(), **_told(sides)}
        node = rollout.to if status == FINISHED else rollout.base
        head = self._log.live.head
        if node is not None and status == ABORTED:
            held = self._acting.held_back(head.state_seq, node)
            if held is not None:
                if not sides.told:
                    reason = f"{why}; not carried out: {held}"
                    self._acting.observe(head.state_seq, "held_back", reason, evidence)
                sides.told = True
                sides.asked_again = time.monotonic() + _ASK_AGAIN_S
                sides.acting = False
                return
        caller = Caller(actor=self._acting.actor)
        self._log.execute(EndRollout(status, rollout.id, caller, _CAUSE, why, evidence))


def _told(sides: _Sides) -> dict[str, Any]:
    return {
        "rollout": {
            "percent": sides.rollout.percent,
            "new": sorted(sides.replicas[True]),
            "old": sorted(sides.replicas[False]),
        }
    }
