"""What becomes of rollouts: events that replicas read, each for itself."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from weightledger.ledger.errors import NotFound, Pruned, RolloutRuns
from weightledger.ledger.events.bodies import RolloutChanged
from weightledger.ledger.history import rollouts
from weightledger.ledger.history.rollouts import ADVANCED, FINISHED, STARTED, Rollout
from weightledger.ledger.writing.commands import RollBack
from weightledger.ledger.writing.handlers.rollbacks import roll_back
from weightledger.ledger.writing.proposed import ProposedEvent, stateless
from weightledger.ledger.writing.rollout_commands import AdvanceRollout, EndRollout, StartRollout
from weightledger.ledger.writing.staged import Staged

HEAD = "head"


def start(command: StartRollout, staged: Staged) -> ProposedEvent:
    """Replicas are told apart: some show another state than the head, or go on without the rest."""
    before = rollouts.newest(staged.history.store)
    if before is not None and before.running:
        raise RolloutRuns(f"{before.id} runs: finish or abort it first")
    to: int | None = None
    base: int | None = staged.live.head.node
    if command.to != HEAD:
        position = staged.history.resolve(command.to)
        if not staged.history.ways.restorable(position.node):
            raise Pruned(f"gc dropped what the state at {command.to} needs", seq=position.node)
        to, base = position.node, None
    body = RolloutChanged(STARTED, None, command.percent, to, base)
    return stateless(staged, body, number=0 if before is None else before.number + 1)


def advance(command: AdvanceRollout, staged: Staged) -> ProposedEvent:
    """More of the replicas, or fewer."""
    rollout = running(staged, command.rollout)
    return _changed(staged, rollout, ADVANCED, command.percent)


def end(command: EndRollout, staged: Staged) -> ProposedEvent:
    """Every replica shows the head again, which is moved first where it is another state."""
    rollout = running(staged, command.rollout)
    node = rollout.to if command.status == FINISHED else rollout.base
    if node is not None and staged.live.head.node != node:
        cause = f"rollout_{command.status}"
        why = command.why, command.evidence
        moving = RollBack(f"seq:{node}", command.caller, cause, *why)
        return replace(roll_back(moving, staged), more=True, worded=True)
    return _changed(staged, rollout, command.status, rollout.percent, command.why, command.evidence)


def _changed(
    staged: Staged,
    of: Rollout,
    action: str,
    percent: int,
    reason: str | None = None,
    evidence: Mapping[str, Any] = MappingProxyType({}),
) -> ProposedEvent:
    body = RolloutChanged(action, of.started_seq, percent, of.to, of.base, reason, evidence)
    return stateless(staged, body, number=of.number + 1)


def running(staged: Staged, named: str | None) -> Rollout:
    """The rollout that runs, by its name or whichever it is; NotFound unless it runs."""
    rollout = rollouts.newest(staged.history.store)
    if rollout is None or not rollout.running or named not in (None, rollout.id):
        raise NotFound(
            "no rollout runs" if named is None else f"rollout {named!r} does not run", param="id"
        )
    return rollout
