"""Causal: work every later update out again, from its operands, on the state without some events.

First the same stretch is worked out with all of its events, and has to come to the recorded
digests bit for bit: where it does not, nothing that is worked out here means anything.
"""

from dataclasses import dataclass, field

import torch

from weightledger.ledger.debug.walking import ReplayedState, Walker
from weightledger.ledger.debug.whatif.derivations import AdapterMove, derived, plan_of
from weightledger.ledger.debug.whatif.selection import Selected
from weightledger.ledger.debug.whatif.state import WhatIf
from weightledger.ledger.engines.state import StateEngine
from weightledger.ledger.errors import CannotDerive, LedgerError
from weightledger.ledger.events import Event
from weightledger.ledger.events.changes import WHOLE, TensorChange
from weightledger.ledger.history.positions import Position
from weightledger.ledger.history.reader import History
from weightledger.ledger.projection.change import HashedTensor
from weightledger.ledger.projection.projector import Projector
from weightledger.ledger.tensors.digest import chunk_digests, root
from weightledger.ledger.tensors.lanes import lanes, spec_of, tensor_digest
from weightledger.ledger.tensors.spec import WEIGHTS
from weightledger.ledger.writing.commands import Command
from weightledger.ledger.writing.encoding import Recorded
from weightledger.ledger.writing.plan import Plan
from weightledger.ledger.writing.policy import ANYTHING_GOES
from weightledger.ledger.writing.staged import Staged


def causal(history: History, at: Position, selected: Selected) -> WhatIf:
    """The state without the selected events; CannotDerive names the first event that cannot be
    worked out again, or not to the recorded bits."""
    base = Walker(history).to(selected.base)
    actual, altered = staged_at(history, base), AlteredState(staged_at(history, base))
    left_out = {event.seq for event in selected.without}
    for event in history.require_all(selected.way):
        what = derived(history, event, actual.specs)
        prove(actual, event, what)
        if event.seq not in left_out:
            altered.take(event, what)
    return WhatIf(
        "causal",
        at,
        selected.without,
        altered.replayed(base, at.node),
        _replayed(actual, base, at.node),
        altered.again,
        altered.not_asked,
        tuple(altered.refused),
    )


def prove(actual: Staged, event: Event, what: Command | AdapterMove) -> None:
    """Take a state through an event as it was; CannotDerive where it comes to other bits."""
    _derive(actual, event, what)
    digest = actual.live.state.value
    if digest != event.state_after:
        raise CannotDerive(
            f"{event.name} cannot be worked out again: it comes to digest {digest.hex()} here, "
            f"recorded is {event.state_after.hex()}. Another processor, number of threads or "
            "release computes other last bits",
            seq=event.seq,
        )


@dataclass(slots=True)
class AlteredState:
    """A state without some events, and what became of the others on it; see `WhatIf`."""

    staged: Staged
    again: int = 0
    not_asked: int = 0
    refused: list[str] = field(default_factory=list)

    def take(self, event: Event, what: Command | AdapterMove) -> None:
        """Take it through an event; CannotDerive where that cannot be."""
        self.again += 1
        self.not_asked += bool(event.body.get("post_metrics")) and _was_evaluated(event)
        try:
            if not _derive(self.staged, event, what):
                self.refused.append(event.name)
        except LedgerError as error:
            raise CannotDerive(
                f"{event.name} cannot be worked out on the altered state: {error}", seq=event.seq
            ) from error

    def replayed(self, base: ReplayedState, seq: int) -> ReplayedState:
        """The state with its tensors, called that of an event."""
        return _replayed(self.staged, base, seq)


def _was_evaluated(event: Event) -> bool:
    evidence = event.body.get("evidence") or {}
    return evidence.get("evaluated") is not False


def staged_at(history: History, base: ReplayedState) -> Staged:
    """A state to work on that nobody else sees."""
    weights = base.weights
    projector = Projector(StateEngine(weights), history.pool)
    projector.genesis()  # hashes the weights
    beside = {name: t for name, t in base.tensors.items() if not name.startswith(WEIGHTS)}
    projector.adopt(history.require(base.seq), base.digest, beside)
    return Staged(history, projector, ANYTHING_GOES)


def _derive(staged: Staged, event: Event, what: Command | AdapterMove) -> bool:
    """Take a state through an event; False where the event would have been refused."""
    plan = plan_of(what, staged)
    if plan.verdict.reason is not None:
        return False
    recorded = [
        _recorded(staged, WEIGHTS + name, write.after) for name, write in plan.weights.items()
    ]
    moved = [
        change for name in plan.auxiliary if (change := _moved(staged, plan, name)) is not None
    ]
    staged.stage(event, staged.changed(recorded, moved, plan.auxiliary))
    return True


def _recorded(staged: Staged, name: str, after: torch.Tensor) -> Recorded:
    chunks = chunk_digests(lanes(after, name))
    before, digest = staged.live.state.digests[name], root(chunks)
    change = TensorChange(name, before, digest, 0, int(before != digest))
    return change, HashedTensor(after, chunks), None


def _moved(staged: Staged, plan: Plan, name: str) -> TensorChange | None:
    state, after = staged.live.state, plan.auxiliary[name]
    before, spec_before = state.digests.get(name), state.specs.get(name)
    digest = None if after is None else tensor_digest(after)
    spec = None if after is None else spec_of(name, after)
    if (before, spec_before) == (digest, spec):
        return None
    return TensorChange(name, before, digest, 0, 1, WHOLE, spec_before, spec)


def _replayed(staged: Staged, base: ReplayedState, seq: int) -> ReplayedState:
    state = staged.live.state
    tensors = {name: staged.tensor(name) for name in state.specs}
    return ReplayedState(base.model, seq, state, tensors)
