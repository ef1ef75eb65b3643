"""What updates do: the arithmetic of requests."""

from collections.abc import Sequence

import torch

from weightledger.ledger.tensors.spec import WEIGHTS
from weightledger.ledger.writing.arithmetic import NonFiniteResult, compute, moved_quickly
from weightledger.ledger.writing.given import operands_of
from weightledger.ledger.writing.plan import Plan, Write
from weightledger.ledger.writing.policy import Verdict
from weightledger.ledger.writing.requests import Update
from weightledger.ledger.writing.staged import Staged
from weightledger.ledger.writing.update_commands import ApplyUpdates


def apply(command: ApplyUpdates, staged: Staged) -> Plan:
    """Updates of parameters, each computed on what those before it led to."""
    staged.make_room()
    if len(command.updates) > 1:
        quick = _moved_quickly(command.updates, staged)
        if quick is not None:
            return Plan(command.facts, quick, given=operands_of(command.updates))
    writes: dict[str, Write] = {}
    try:
        for update in command.updates:
            name = update.spec.name
            known = writes.get(name)
            before = known.after if known else staged.tensor(WEIGHTS + name)
            after = compute(update, before)
            if known is None:
                factors = update.factors if update.learning_rate else None
                writes[name] = Write(after, update.indices, factors)
            else:
                writes[name] = Write(after, _both(known.positions, update.indices))
    except NonFiniteResult as error:
        reason = f"Automatic rollback: {error}"
        refused = Verdict(reason=reason, evidence={"cause": "non_finite"})
        return Plan(command.facts, verdict=refused)
    return Plan(command.facts, writes, given=operands_of(command.updates))


def _moved_quickly(updates: Sequence[Update], staged: Staged) -> dict[str, Write] | None:
    """What many updates of small tensors lead to; None where one of them is anything special."""
    of: dict[str, list[Update]] = {}
    for update in updates:
        of.setdefault(update.spec.name, []).append(update)
    writes: dict[str, Write] = {}
    for name, its in of.items():
        after = moved_quickly(its, staged.tensor(WEIGHTS + name))
        if after is None:
            return None
        writes[name] = Write(after)
    return writes


def _both(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    """The positions of either; None when one of them is everywhere."""
    if one is None or other is None:
        return None
    both: torch.Tensor = torch.unique(torch.cat((one, other)))
    return both
