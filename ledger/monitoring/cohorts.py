"""A rollout's cohorts as the two sides of a comparison, and the end that follows from it.

What replicas measured, and what is pushed, says which replica served it at which seq. Which side
that is follows from the log: the replicas that are to show what is rolled out are the new side, the
others the old one. A value counts if its state is one of its side's, so that late ones and those of
before decide nothing.
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
from weightledger.ledger.monitoring.rollups import Rollup
from weightledger.ledger.monitoring.samples import Sample
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.rollout_commands import EndRollout

logger = logging.getLogger("weightledger.ledger.manager")

_CAUSE = "policy"
_ASK_AGAIN_S = 5.0
_MOST_VALUES = 200  # of one rollup: more say little that is new, and each is bet on
# What replicas count requests by a second under is how many came.
_MEASURED_AS = {"throughput": "items_per_second"}


@dataclass(slots=True)
class _Sides:
    """What is known of one rollout; `replicas` are those that were heard of, by side."""

    rollout: Rollout
    panel: Panel
    replicas: dict[bool, set[str]] = field(default_factory=lambda: {False: set(), True: set()})
    nodes: dict[int, int] = field(default_factory=dict)
    acting: bool = False
    told: bool = False
    asked_again: float = 0.0


class Cohorts:
    """Decides about the rollout that runs, by what is pushed and what replicas measured.

    Safe to use from several threads.
    """

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
        self._rng = np.random.default_rng(0)
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
            started_us = self._log.history.require(sides.rollout.started_seq).recorded_at
            counted: dict[str, list[tuple[float, bool]]] = {}
            for one in own:
                assert one.replica is not None
                side = self._side(sides, one.replica, one.seq)
                if side is not None and one.at_us >= started_us:
                    counted.setdefault(one.metric, []).append((one.value, side))
            for metric, values in counted.items():
                sides.panel.observe(
                    metric,
                    np.array([value for value, _ in values]),
                    np.array([side for _, side in values], dtype=bool),
                )
            self._judge(sides)

    def awaited(self) -> tuple[int, list[str]] | None:
        """What replicas are to have measured: while which rollout, by the seq that began it, and
        which metrics; None while none runs."""
        with self._lock:
            sides = self._current()
        if sides is None:
            return None
        return sides.rollout.started_seq, [_MEASURED_AS.get(one, one) for one in self._metrics]

    def measured(self, rollups: Sequence[Rollup]) -> None:
        """Take in what replicas measured at about the same time while a rollout ran.

        In which order is not known: it is drawn, so that each value meets one of the other side.
        """
        with self._lock:
            sides = self._current()
            if sides is None:
                return
            counted: dict[str, list[tuple[Rollup, bool]]] = {}
            for one in rollups:
                if one.replica is None or one.rollout != sides.rollout.started_seq:
                    continue
                if one.first_seq != one.last_seq:
                    continue  # of which state is not known
                side = self._side(sides, one.replica, one.last_seq)
                if side is not None:
                    counted.setdefault(one.metric, []).append((one, side))
            for metric in self._metrics:
                known = counted.get(_MEASURED_AS.get(metric, metric), [])
                if not known:
                    continue
                values = [one.values(_MOST_VALUES) for one, _ in known]
                new = [np.full(len(v), side) for v, (_, side) in zip(values, known, strict=True)]
                order = self._rng.permutation(sum(map(len, values)))
                sides.panel.observe(
                    metric, np.concatenate(values)[order], np.concatenate(new)[order]
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

    def _side(self, sides: _Sides, replica: str, seq: int) -> bool | None:
        """Whether what a replica served at a seq is of the new side; None if of neither."""
        rollout = sides.rollout
        new = rollouts.cohort(rollout.id, replica) < rollout.percent
        held = rollout.to if rollout.base is None else rollout.base
        node = sides.nodes.get(seq)
        if node is None:
            node = sides.nodes[seq] = self._log.history.require(seq).node
        # One side is held at a state; the other follows the head, and has left that state.
        is_held = new if rollout.base is None else not new
        if (node == held) != is_held:
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
