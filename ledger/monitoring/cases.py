"""A case: states under judgement, what they are compared with, and what is known by now."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from weightledger.ledger.events import UPDATED, Event
from weightledger.ledger.monitoring.deciding.chronicle import Chronicle
from weightledger.ledger.monitoring.deciding.comparisons import Mask
from weightledger.ledger.monitoring.deciding.deciders import Panel, Ruling
from weightledger.ledger.monitoring.deciding.panels import GAUGE, IN_A_ROW
from weightledger.ledger.monitoring.references import values_of
from weightledger.ledger.monitoring.samples import NOT_SAID, Inferences, Sample

MOST_UNITS = 100_000
"""Request keys of one case that are remembered; later ones count no more."""

_ASK_AGAIN_S = 0.5
_MOST_DOUBLINGS = 7  # of that: a minute


@dataclass(slots=True)
class Case:
    """The states at `seqs`, the newest made by `of`, against those at `old_seqs`; `update` is the
    newest update among them.

    `targets` are the nodes that a rollback leads to, by the baseline that shows harm. In a trial
    (`beside`) both serve at the same time, else the old ones are known from before. `held_back`: it
    is in the log that a rollback was ruled, and may not be carried out yet.
    """

    of: Event
    seqs: set[int]
    panel: Panel | Chronicle
    targets: dict[str, int]
    old_seqs: set[int] = field(default_factory=set)
    beside: bool = False
    started: float = field(default_factory=time.monotonic)
    state: Literal["open", "acting", "closed"] = "open"
    requests: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    held_back: bool = False
    update: Event = field(init=False)
    _asked_again: float = 0.0
    _refusals: int = 0
    _units: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.update = self.of

    def join(self, event: Event) -> None:
        """Judge a further state with those there are: a rollback undoes all of them."""
        self.of = event
        if event.kind == UPDATED:
            self.update = event
        self.seqs.add(event.state_seq)

    @property
    def pause_s(self) -> float:
        """Seconds until it is judged again: what was held back a moment ago is not at once."""
        return max(0.0, self._asked_again - time.monotonic())

    def may_act(self) -> bool:
        """Whether it is to be judged now."""
        return self.state == "open" and not self.pause_s

    def wait(self, *, told: bool = False, refused: bool = False) -> None:
        """What was ruled is not carried out yet: it is asked again, in a while. `told`: the log
        says so. `refused`: the log could not do it, and is asked ever less often, since finding out
        may mean to rebuild a state for as long as everybody else who writes waits."""
        self.held_back |= told
        self._asked_again = time.monotonic() + _ASK_AGAIN_S * 2**self._refusals
        self._refusals = min(self._refusals + 1, _MOST_DOUBLINGS) if refused else 0

    def infer(self, inferences: Inferences) -> None:
        """Take in what requests were like, where they are of one side or the other."""
        ours = inferences.where(self._counted(inferences))
        if not len(ours):
            return
        new, ok = np.isin(ours.seq, [*self.seqs]), ours.ok
        self.requests[True] += int(new.sum())
        self.requests[False] += int((~new).sum())
        for metric, values in values_of(ours).items():
            if len(values):
                self.panel.observe(metric, values, new if metric == "failed" else new[ok])

    def sample(self, samples: Sequence[Sample]) -> None:
        """Take in single values."""
        for metric in {one.metric for one in samples}:
            ours = [one for one in samples if one.metric == metric and self._knows(one.seq)]
            if ours:
                self._observe(metric, ours)

    def ruling(self) -> Ruling:
        """What is known by now."""
        return self.panel.ruling()

    def _observe(self, metric: str, samples: Sequence[Sample]) -> None:
        values = np.array([one.value for one in samples], dtype=np.float64)
        new = np.array([one.seq in self.seqs for one in samples])
        if self.beside:
            at_us = np.array([one.at_us for one in samples], dtype=np.int64)
            self.panel.observe_pushed(metric, values, new, at_us)
        else:
            self.panel.observe(metric, values, new)

    def _knows(self, seq: int) -> bool:
        return seq in self.seqs or seq in self.old_seqs

    def _counted(self, told: Inferences) -> Mask:
        """Which requests count: of those with one key in a trial, which all meet one state, the
        first. They are like each other, and a coin was thrown for them once."""
        known: Mask = np.isin(told.seq, [*self.seqs, *self.old_seqs])
        if self.beside:
            for at in np.flatnonzero(known & (told.unit != NOT_SAID)):
                unit = int(told.unit[at])
                if unit in self._units or len(self._units) >= MOST_UNITS:
                    known[at] = False
                else:
                    self._units.add(unit)
        return known


def measured(case: Case, metrics: Collection[str], minimum: int) -> bool:
    """Whether the new states have served enough to be compared with later ones."""
    wanted = {metric: IN_A_ROW if metric == GAUGE else minimum for metric in metrics}
    return any(case.panel.seen(metric, new=True) >= least for metric, least in wanted.items())
