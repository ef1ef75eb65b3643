"""What a policy says of a candidate before it is appended, beside what the evaluator finds.

Each event that a policy ruled on says which one it was. A state that was rolled back automatically
is not tried again, a value that is no number never becomes live, and what creeps is compared with
the best since the last named version: twenty losses within the threshold are one beyond it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from weightledger.ledger import events
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import Event
from weightledger.ledger.events.bodies import VersionCreated, body_of
from weightledger.ledger.history.intact import skipped
from weightledger.ledger.history.reader import History
from weightledger.ledger.monitoring.acting import rejected_states
from weightledger.ledger.monitoring.degradation import degradation
from weightledger.ledger.monitoring.metrics import EVALUATED, higher_is_better
from weightledger.ledger.monitoring.policies import RollbackPolicy
from weightledger.ledger.monitoring.trial_log import DEGRADED
from weightledger.ledger.projection.change import Change
from weightledger.ledger.tensors.lanes import finite
from weightledger.ledger.writing.policy import ChangeGuard, Verdict
from weightledger.ledger.writing.showing import Committed

_REASON = "Automatic rollback"
_MOST_ANCESTORS = 256


class RuledGuard:
    """A guard under a policy. `attach` hands it the log, whose guard it is."""

    def __init__(
        self, guard: ChangeGuard, policy: RollbackPolicy, metrics: Sequence[str], threshold: float
    ) -> None:
        self._guard = guard
        self._policy = policy
        self._metrics = metrics
        self._threshold = threshold
        self._rejected: set[bytes] = set()
        self._history: History | None = None
        self._seen = -1
        self._best: dict[str, float] = {}
        self._beside: Callable[[], int | None] = lambda: None
        self._on_trial: Callable[[], bool] = lambda: False

    @property
    def alone(self) -> bool:
        """Whether it looks at candidates: where the guard within does."""
        return self._guard.alone

    def attach(self, history: History) -> None:
        """Read what earlier processes found out."""
        self._history, self._seen = history, history.head().seq
        if not self._policy.acts:
            return
        self._rejected = rejected_states(history)
        self._best = self._best_before(history.head())

    def with_trials(self, beside: Callable[[], int], on_trial: Callable[[], bool]) -> None:
        """Say in each event which state it is tried beside."""
        self._beside, self._on_trial = beside, on_trial

    def current(self) -> dict[str, float]:
        """What is known of the live state."""
        return dict(self._guard.current())

    def __call__(self, change: Change) -> Verdict:
        """The verdict on `change`, under the policy."""
        facts: dict[str, Any] = {"policy": self._policy.name}
        if not self._policy.acts:
            return self._guard(change).with_evidence(facts)
        early = self._refused_unseen(change)
        if early is not None:
            return early.with_evidence(facts)
        verdict = self._guard(change)
        if verdict.reason is None:
            second = self._second_look(verdict)
            if second is not None:
                verdict = verdict.joined(second)
        if verdict.reason is None and (beside := self._beside()) is not None:
            assert self._policy.trial is not None
            facts["trial"] = {"beside": beside, "share": self._policy.trial.share}
        return verdict.with_evidence(facts)

    def after(self, committed: Committed) -> None:
        """Remember what an event of this process says about later ones."""
        self._remember(committed.event)
        if committed.event.seq == self._seen + 1:
            self._seen += 1

    def followed(self, event: Event) -> None:
        """Remember what the events of others say, up to this one.

        Those that could not be read before are read again, in order.
        """
        if self._policy.acts and self._history is not None:
            for one in self._history.store.scan(self._seen + 1, event.seq + 1):
                self._remember(one)
        self._seen = event.seq

    def _remember(self, event: Event) -> None:
        if event.kind == events.UPDATED:
            _improve(self._best, _scores(event.body["post_metrics"]))
        elif event.kind == events.VERSION_CREATED:
            self._best = _scores(body_of(event, VersionCreated).performance_metrics)
        elif event.kind == events.ROLLED_BACK:
            self._rolled_back(event)

    def _rolled_back(self, event: Event) -> None:
        if event.body["cause"] == DEGRADED and event.state_before is not None:
            self._rejected.add(event.state_before)
        self._best = self._best_before(event)  # which asks the log, and that may fail

    def _refused_unseen(self, change: Change) -> Verdict | None:
        """What is refused before anybody evaluates it."""
        if change.state.value in self._rejected:
            reason = f"{_REASON}: this state was rolled back by a policy, and is not tried again"
            return Verdict(reason=reason, evidence={"cause": "rejected_before"})
        trial = self._policy.trial
        if trial is not None and trial.updates == "refuse" and self._on_trial():
            reason = f"{_REASON}: another update is on trial, and the policy refuses more"
            return Verdict(reason=reason, evidence={"cause": "on_trial"})
        for name, new in change.weights.items():
            if not _is_finite(new.tensor):
                reason = f"{_REASON}: {name.partition('/')[2]} would hold values that are no number"
                return Verdict(reason=reason, evidence={"cause": "non_finite"})
        return None

    def _second_look(self, verdict: Verdict) -> Verdict | None:
        """What speaks against a candidate that the evaluator's guard accepts, if anything."""
        if not verdict.evaluated and self._policy.evaluation == "required":
            reason = f"{_REASON}: policy {self._policy.name} accepts nothing that is not evaluated"
            return Verdict(reason=reason, evidence={"cause": "unmeasured"})
        if not verdict.evaluated or not self._best:
            return None
        after = _scores(verdict.post_metrics)
        watched = dict.fromkeys((*self._metrics, *self._best))
        worse = degradation(self._best, after, watched, self._threshold)
        if worse is None:
            return None
        evidence = {
            "cause": "degraded",
            "baseline": "best since the last named version",
            "metric": worse.metric,
            "before": worse.before,
            "after": worse.after,
            "change": worse.change,
            "threshold": worse.threshold,
        }
        reason = f"{_REASON} due to performance degradation since the last named version: {worse}"
        return Verdict(reason=reason, evidence=evidence)

    def _best_before(self, event: Event) -> dict[str, float]:
        """The best scores from the last named version up to the state of an event."""
        if self._history is None:
            return {}
        best, floor = self._named(event.active)
        if not self._guard.alone:
            return best  # nothing else is scored
        at: int | None = event.node
        for _ in range(_MOST_ANCESTORS):
            if at is None or at <= floor:
                break
            try:
                state = self._history.require(at)
                if state.kind == events.UPDATED:
                    _improve(best, _scores(state.body.get("post_metrics", {})))
            except CorruptLedger as error:
                skipped(error, "what creeps is compared with the other states")
            at = self._history.lineage.parent(at)
        return best

    def _named(self, active: int | None) -> tuple[dict[str, float], int]:
        """The scores of a version, or of the last before it that can be read, and its node."""
        assert self._history is not None
        while active is not None and active >= 0:
            try:
                named = self._history.store.by_number(events.VERSIONS, active)
                if named is not None:
                    scores = _scores(body_of(named, VersionCreated).performance_metrics)
                    return scores, named.node
                return {}, -1
            except CorruptLedger as error:
                skipped(error, "what creeps is compared with the version named before it")
                active -= 1
        return {}, -1


def _improve(best: dict[str, float], scores: Mapping[str, float]) -> None:
    for metric, value in scores.items():
        known = best.get(metric, value)
        best[metric] = max(known, value) if higher_is_better(metric) else min(known, value)


def _scores(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those that an evaluator gives."""
    return {name: value for name, value in metrics.items() if name in EVALUATED}


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or tensor.element_size() == 1 or finite(tensor)
