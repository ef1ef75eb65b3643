"""What recording does: the difference between the live weights and a model changed elsewhere."""

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import torch

from weightledger.ledger.codecs.on_device import same_bits
from weightledger.ledger.tensors.lanes import clone, empty, shares_memory
from weightledger.ledger.tensors.memory import LEAST_BYTES
from weightledger.ledger.tensors.side_by_side import side_by_side
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec
from weightledger.ledger.writing.commands import Record
from weightledger.ledger.writing.plan import Plan, Write
from weightledger.ledger.writing.staged import Staged

# Elements compared first: of a tensor that was trained, some have changed.
_FIRST = 1 << 14


def record(command: Record, staged: Staged) -> Plan:
    """Each tensor that has other bits than the live one."""
    staged.make_room()
    pairs = [(staged.tensor(WEIGHTS + name), command.tensors[name]) for name in staged.specs]
    writes = {
        name: _copied(spec, now)
        for (name, spec), (_, now), other in zip(
            staged.specs.items(), pairs, _differ(pairs, staged.history.pool), strict=True
        )
        if other
    }
    facts: dict[str, Any] = {"operation": "record"}
    if command.unwrapped:
        facts["unwrapped"] = list(command.unwrapped)
    return Plan(facts, writes)


def _differ(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], pool: Executor) -> list[bool]:
    """Whether the tensors of each pair have other bits.

    Most that were trained differ soon, which is seen before work is shared out.
    """
    differ, large = [], []
    for at, (live, now) in enumerate(pairs):
        if live.nbytes < LEAST_BYTES:
            differ.append(not same_bits(live, now))
            continue
        head, other = (one.detach().reshape(-1)[:_FIRST] for one in (live, now))
        differ.append(not same_bits(head, other))
        if not differ[at]:
            large.append(at)
    same = side_by_side(lambda at: same_bits(*pairs[at]), large, pool)
    for at, alike in zip(large, same, strict=True):
        differ[at] = not alike
    return differ


def _copied(spec: TensorSpec, now: torch.Tensor) -> Write:
    """The caller may go on changing its tensor meanwhile, so what is recorded is a copy: of a large
    one it is made tile by tile, beside the recording."""
    if spec.nbytes >= LEAST_BYTES and shares_memory(now):
        return Write(empty(spec), source=now)
    return Write(clone(now))
