"""What recording does: the difference between the live weights and a model changed elsewhere."""

from typing import Any

from weightledger.ledger.codecs.on_device import same_bits
from weightledger.ledger.tensors.lanes import clone
from weightledger.ledger.tensors.spec import WEIGHTS
from weightledger.ledger.writing.commands import Record
from weightledger.ledger.writing.plans import Plan, Write
from weightledger.ledger.writing.staged import Staged


def record(command: Record, staged: Staged) -> Plan:
    """Each tensor that has other bits than the live one."""
    staged.make_room()
    # The caller may go on changing its tensor meanwhile, so what is recorded is a copy.
    writes = {
        name: Write(clone(command.tensors[name]))
        for name in staged.specs
        if not same_bits(staged.tensor(WEIGHTS + name), command.tensors[name])
    }
    facts: dict[str, Any] = {"operation": "record"}
    if command.unwrapped:
        facts["unwrapped"] = list(command.unwrapped)
    return Plan(facts, writes)
