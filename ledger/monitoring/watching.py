"""Watching updates under live traffic, after they became what every request sees.

What is measured of the newest state is compared with what is known of earlier ones: the nearest
that served enough requests, and the last named version (or the first that served enough since), so
that many small losses do not pass where one great one would not. An update that arrives before the
one before it was measured joins it: they are judged, and undone, together.

Works on the collecting thread; an update is noticed by the first request that it serves.
"""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Literal

import numpy as np

from weightledger.ledger import events
from weightledger.ledger.errors import LedgerError
from weightledger.ledger.events import Event
from weightledger.ledger.monitoring.acting import Acting, HeldBack, WrittenLog, ancestors
from weightledger.ledger.monitoring.cases import Case, measured
from weightledger.ledger.monitoring.deciding.deciders import Ruling
from weightledger.ledger.monitoring.deciding.panels import GAUGE, one_after_another
from weightledger.ledger.monitoring.policies import RollbackPolicy
from weightledger.ledger.monitoring.references import References, values_of
from weightledger.ledger.monitoring.rollups import MetricsReader
from weightledger.ledger.monitoring.samples import Inferences, Sample

logger = logging.getLogger("weightledger.ledger.manager")

_MOST_ANCESTORS = 4096
_MOST_NODES = 4096


class Watch:
    """Compares each state that is served with those before it, and has it rolled back."""

    def __init__(
        self,
        log: WrittenLog,
        acting: Acting,
        policy: RollbackPolicy,
        metrics: Sequence[str],
        threshold: float,
        reader: MetricsReader | None = None,
    ) -> None:
        self._log = log
        self._acting = acting
        self._policy = policy
        self._metrics = metrics
        self._threshold = threshold
        self._references = References(reader)
        self._lock = threading.Lock()
        self._case: Case | None = None
        self._newest = -1
        self._nodes: dict[int, int] = {}  # of seqs that served
        self._harmful: set[int] = set()  # nodes that were ruled to be, and are no baseline
        self._fault: str | None = None

    def inferences(self, told: Inferences) -> None:
        """Take in finished requests, in order."""
        with self._lock:
            seqs = [seq for seq in np.unique(told.seq).tolist() if self._is_known(seq)]
            known = told.where(np.isin(told.seq, seqs))
            if not len(known):
                return
            if self._case is not None:
                self._case.infer(known)
            for seq, own in known.by_seq():
                self._references.add(self._nodes[seq], values_of(own))
            self._judge()

    def samples(self, told: Sequence[Sample]) -> None:
        """Take in single values, but for evaluators': those were judged before."""
        own = [
            one
            for one in told
            if one.source != "evaluator"
            and (one.metric != "throughput" or one.source == "pushed")
            and one.metric in self._metrics
        ]
        with self._lock:
            known = [one for one in own if self._is_known(one.seq)]
            if self._case is not None:
                self._case.sample(known)
            for one in known:
                value = np.array([one.value])
                self._references.add(self._nodes[one.seq], {one.metric: value})
            self._judge()

    # Under the lock

    def _is_known(self, seq: int) -> bool:
        """Whether it is known which state was live; what is newer than the last becomes it."""
        if seq in self._nodes:
            return True
        try:
            event = self._log.history.require(seq)
            self._nodes[seq] = event.node
            while len(self._nodes) > _MOST_NODES:
                del self._nodes[next(iter(self._nodes))]
            if seq > self._newest:
                self._enter(event)  # else it is entered with the next request
                self._newest = seq
        except LedgerError as error:
            self._nodes.pop(seq, None)
            if self._fault != str(error):  # an outage is one line
                logger.error("what is served cannot be judged: %s", error)
            self._fault = str(error)
            return False
        self._fault = None
        return True

    def _enter(self, event: Event) -> None:
        """A state that served for the first time."""
        case = self._case
        if event.kind in (events.ADAPTER_LOADED, events.ADAPTER_UNLOADED):
            if case is not None:
                case.join(event)
            return
        if event.kind != events.UPDATED:
            self._case = None
            return
        history = self._log.history
        if case is not None and case.state != "closed":
            little = not measured(case, self._metrics, self._policy.minimum)
            if little and case.of.node in ancestors(history, event.node, case.of.node - 1):
                case.join(event)
                return
        self._case = self._opened(event)

    def _opened(self, event: Event) -> Case | None:
        """The case of a state, with the earlier ones that it is compared with."""
        history = self._log.history
        named = None if event.active is None else history.store.listed_version(event.active)
        floor = 0 if named is None else named.node
        targets: dict[str, int] = {}
        parent = at = history.lineage.parent(event.node)
        for _ in range(_MOST_ANCESTORS):
            if at is None or at < floor:
                break
            if self._is_measured(at, stored=at in (parent, floor)):
                targets.setdefault("parent", at)
                targets["version"] = at
            at = history.lineage.parent(at)
        if targets.get("version") == targets.get("parent"):
            targets.pop("version", None)
        known = {
            baseline: self._references.of(node, self._metrics, self._seqs_of(node))
            for baseline, node in targets.items()
        }
        self._references.forget_but({event.node, *targets.values()})
        panel = one_after_another(self._policy, self._metrics, self._threshold, known)
        targets.setdefault("parent", event.node if parent is None else parent)
        targets["objective"] = targets["parent"]
        return Case(event, {event.state_seq}, panel, targets)

    def _is_measured(self, node: int, *, stored: bool) -> bool:
        """Whether a state can be compared with; with `stored` the database is asked too."""
        if node in self._harmful:
            return False
        counts = {one: self._references.count(node, one) for one in self._metrics}
        if stored and not any(counts.values()):
            known = self._references.of(node, self._metrics, self._seqs_of(node))
            counts = {one: len(values) for one, values in known.items()}
        least = {one: 1 if one == GAUGE else self._policy.minimum for one in counts}
        return any(counts[one] >= least[one] for one in counts)

    def _seqs_of(self, node: int) -> set[int]:
        return {node} | {seq for seq, other in self._nodes.items() if other == node}

    def _judge(self) -> None:
        case = self._case
        if case is None or not case.may_act():
            return
        ruling = case.ruling()
        if ruling.known != "harmful":
            return
        case.state = "acting"
        self._harmful |= {self._nodes[seq] for seq in case.seqs if seq in self._nodes}
        target = case.targets.get(ruling.baseline or "parent", case.targets.get("parent"))
        if target is None:
            logger.warning("%s, and no earlier state to go back to is known", ruling)
            return
        decided_us = time.time_ns() // 1000
        self._acting.soon(lambda: self._roll_back(case, target, ruling, decided_us))

    def _roll_back(self, case: Case, target: int, ruling: Ruling, decided_us: int) -> None:
        state: Literal["open", "closed"] = "closed"
        try:
            self._acting.roll_back(
                case.of.state_seq, target, ruling, told=case.held_back, decided_us=decided_us
            )
        except HeldBack as held:
            case.wait(told=held.told, refused=held.refused)
            state = "open"
        except LedgerError:
            case.wait()  # it is not undone for that: it is ruled on again
            state = "open"
            raise
        finally:
            case.state = state
