"""One table: what each command does.

A handler turns a command and the staged state into a plan (which `proposing.proposed` records and
the log's guard judges), into an event that changes no weights, or into an event there is already.
It is called again on the newer state when another writer was faster, so whatever depends on the
model is read in it; it appends nothing and shows nothing.

A layer above adds its own command with `add_command`; a second handler for a command is an error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from weightledger.ledger.events import Event
from weightledger.ledger.writing import approval_commands, commands, rollout_commands
from weightledger.ledger.writing.commands import Command
from weightledger.ledger.writing.handlers import (
    adapters,
    approvals,
    holds,
    observing,
    recording,
    redacting,
    rollbacks,
    rollouts,
    updates,
    versions,
)
from weightledger.ledger.writing.plan import Plan
from weightledger.ledger.writing.policy import Switch
from weightledger.ledger.writing.proposed import ProposedEvent
from weightledger.ledger.writing.short_way import proposed_at_once
from weightledger.ledger.writing.staged import Staged
from weightledger.ledger.writing.update_commands import ApplyUpdates

C = TypeVar("C")

Answer = Plan | ProposedEvent | Event


@dataclass(frozen=True, slots=True)
class Row:
    """How a kind of command is handled.

    `switch` is what has to be switched on. With `grouped` it can be worked out on events that are
    not appended yet, and share a transaction with them. A `light` one cannot, but takes less than
    asking the log whether others wrote meanwhile, and comes to an event or an error: the append
    finds that out. `read` is what takes long and needs no lock: it is done before the command
    queues, and gives the command to queue. `at_once` is a shorter way to the event that `handle`
    leads to, for most commands; None where it is not for it.
    """

    handle: Callable[[Any, Staged], Answer]
    switch: Switch | None = None
    grouped: bool = False
    light: bool = False
    read: Callable[[Any, Staged], Any] | None = None
    at_once: Callable[[Any, Staged], ProposedEvent | None] | None = None

    def answer(self, command: Any, staged: Staged) -> Answer:
        """What a command comes to on the staged state, by the shortest way."""
        found = None if self.at_once is None else self.at_once(command, staged)
        return self.handle(command, staged) if found is None else found


_ROWS: dict[type, Row] = {}


def add_command(
    command: type[C],
    handle: Callable[[C, Staged], Answer],
    *,
    switch: Switch | None = None,
    grouped: bool = False,
    light: bool = False,
    read: Callable[[C, Staged], C] | None = None,
    at_once: Callable[[C, Staged], ProposedEvent | None] | None = None,
) -> None:
    """Give a kind of command its handler; ValueError when it has one."""
    if command in _ROWS:
        raise ValueError(f"{command.__name__} has a handler already")
    _ROWS[command] = Row(handle, switch, grouped, light, read, at_once)


def row_of(command: Command) -> Row:
    """The row of a command; TypeError for one that nobody handles."""
    row = _ROWS.get(type(command))
    if row is None:
        known = ", ".join(sorted(kind.__name__ for kind in _ROWS))
        raise TypeError(f"{type(command).__name__} is no command; known are {known}")
    return row


add_command(
    ApplyUpdates,
    updates.apply,
    switch="incremental learning",
    grouped=True,
    at_once=proposed_at_once,
)
add_command(commands.Record, recording.record, switch="incremental learning")
add_command(commands.CreateVersion, versions.create, switch="versioning", light=True)
add_command(commands.CreateInitialVersion, versions.create_initial, switch="versioning")
add_command(commands.Pin, versions.pin, switch="versioning", light=True)
add_command(commands.Retire, versions.retire, light=True)
add_command(commands.PlaceHold, holds.place, light=True)
add_command(commands.Release, holds.release, light=True)
add_command(commands.Redact, redacting.redact)
add_command(commands.RollBack, rollbacks.roll_back, switch="versioning")
add_command(commands.Observe, observing.observe, light=True)
add_command(commands.ChangePolicy, observing.change_policy)
add_command(rollout_commands.StartRollout, rollouts.start, switch="versioning")
add_command(rollout_commands.AdvanceRollout, rollouts.advance, switch="versioning")
add_command(rollout_commands.EndRollout, rollouts.end, switch="versioning")
add_command(commands.LoadAdapter, adapters.load, read=adapters.read)
add_command(commands.UnloadAdapter, adapters.unload)
add_command(commands.MergeAdapter, adapters.merge, switch="incremental learning")
add_command(approval_commands.RequestApproval, approvals.request)
add_command(approval_commands.Decide, approvals.decide)
add_command(approval_commands.Lapse, approvals.lapse)
