"""Adopting a what-if: the model goes to a state that no event led to, by an ordinary update.

It meets the guard and the switches as every update does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from weightledger.ledger.debug.whatif.asking import what_if
from weightledger.ledger.debug.whatif.selection import require_list
from weightledger.ledger.debug.whatif.state import Mode, WhatIf
from weightledger.ledger.events.canonical import canonical
from weightledger.ledger.history.reader import History
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.spec import WEIGHTS
from weightledger.ledger.writing import handlers
from weightledger.ledger.writing.caller import ANYONE, Caller
from weightledger.ledger.writing.plan import Plan, Write
from weightledger.ledger.writing.staged import Staged

OPERATION = "what_if"
"""What the event's body calls it; permanent."""


@dataclass(frozen=True, slots=True)
class AdoptWhatIf:
    """Make a what-if the model's state. `found` is what was worked out before it queued."""

    without: tuple[str, ...]
    to: str = "head"
    mode: Mode = "mechanical"
    only_after: str | None = None
    caller: Caller = ANYONE
    found: WhatIf | None = field(default=None, compare=False, repr=False)
    metadata: str | None = field(default=None, init=False)

    @property
    def digest(self) -> bytes:
        asked = {
            "operation": OPERATION,
            "without": list(self.without),
            "to": self.to,
            "mode": self.mode,
            "only_after": self.only_after,
        }
        return content_digest(canonical(asked))


def adopt_command(
    history: History,
    without: Sequence[str],
    *,
    to: str = "head",
    mode: Mode = "mechanical",
    only_after: str | None = None,
    caller: Caller = ANYONE,
) -> AdoptWhatIf:
    """The command, with a reason that says what it is where the caller gives none."""
    require_list(without)
    if caller.reason is None:
        caller = replace(caller, reason=f"what-if ({mode}): {to} without {', '.join(without)}")
    return AdoptWhatIf(tuple(without), to, mode, only_after, caller)


def read(command: AdoptWhatIf, staged: Staged) -> AdoptWhatIf:
    """The same command with its state worked out, which takes long and needs no lock."""
    return replace(command, found=_ask(command, staged.history))


def adopt(command: AdoptWhatIf, staged: Staged) -> Plan:
    """The tensors of the what-if that differ from the newest state's."""
    staged.make_room()
    found = command.found
    if found is None or staged.history.resolve(command.to).node != found.at.node:
        found = _ask(command, staged.history)
    live, state = staged.live.state, found.state
    weights: dict[str, Write] = {}
    beside: dict[str, torch.Tensor | None] = {}
    for name in live.digests.keys() | state.digest.digests.keys():
        if live.same(state.digest, name):
            continue
        if name.startswith(WEIGHTS):
            weights[name.removeprefix(WEIGHTS)] = Write(state.tensors[name])
        else:
            beside[name] = state.tensors.get(name)
    facts = {
        "operation": OPERATION,
        "mode": found.mode,
        "to": found.at.text,
        "to_seq": found.at.node,
        "without": [event.name for event in found.without],
        "derived": found.derived,
    }
    return Plan(facts, dict(sorted(weights.items())), dict(sorted(beside.items())))


def _ask(command: AdoptWhatIf, history: History) -> WhatIf:
    return what_if(
        history,
        command.without,
        to=command.to,
        mode=command.mode,
        only_after=command.only_after,
    )


handlers.add_command(AdoptWhatIf, adopt, switch="incremental learning", read=read)
