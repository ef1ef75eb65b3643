"""What recording does: the difference between the live weights and a model changed elsewhere."""

from typing import Any

import torch

from weightledger.ledger.codecs.on_device import same_bits
from weightledger.ledger.tensors.lanes import clone, empty, shares_memory
from weightledger.ledger.tensors.memory import LEAST_BYTES
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec
from weightledger.ledger.writing.commands import Record
from weightledger.ledger.writing.plan import Plan, Write
from weightledger.ledger.writing.staged import Staged


def record(command: Record, staged: Staged) -> Plan:
    """Each tensor that has other bits than the live one."""
    staged.make_room()
    pairs = [(staged.tensor(WEIGHTS + name), command.tensors[name]) for name in staged.specs]
    large = [pair for pair in pairs if pair[0].nbytes >= LEAST_BYTES]
    same = staged.history.pool.map(same_bits, *zip(*large, strict=True)) if large else iter(())
    writes = {
        name: _copied(spec, now)
        for (name, spec), (live, now) in zip(staged.specs.items(), pairs, strict=True)
        if not (next(same) if live.nbytes >= LEAST_BYTES else same_bits(live, now))
    }
    facts: dict[str, Any] = {"operation": "record"}
    if command.unwrapped:
        facts["unwrapped"] = list(command.unwrapped)
    return Plan(facts, writes)


def _copied(spec: TensorSpec, now: torch.Tensor) -> Write:
    """The caller may go on changing its tensor meanwhile, so what is recorded is a copy: of a large
    one it is made tile by tile, beside the recording."""
    if spec.nbytes >= LEAST_BYTES and shares_memory(now):
        return Write(empty(spec), source=now)
    return Write(clone(now))
