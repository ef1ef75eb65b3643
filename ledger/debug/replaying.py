"""Any state again, as it was or without some events: in memory, and as files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightledger.ledger.debug import parallel
from weightledger.ledger.debug.walking import ReplayedState, Walker
from weightledger.ledger.debug.whatif.asking import what_if
from weightledger.ledger.debug.whatif.parallel import mechanical_by
from weightledger.ledger.debug.whatif.selection import select
from weightledger.ledger.debug.whatif.state import Mode, WhatIf
from weightledger.ledger.history.reader import History
from weightledger.ledger.parallel import Executor
from weightledger.ledger.parallel.local import ALONE


@dataclass(frozen=True, slots=True)
class StateRequest:
    """Which state: the one at a position, or what it would be without some events."""

    to: str = "head"
    without: Sequence[str] = ()
    mode: Mode = "mechanical"
    only_after: str | None = None


def replayed(
    history: History, asked: StateRequest, walker: Walker | None = None
) -> tuple[ReplayedState, WhatIf | None]:
    """The state, verified, and the what-if that it is, if it is one.

    A `walker` that is given goes there from where it is. Raises what `History.rebuild` and
    `what_if` do.
    """
    if not asked.without:
        at = history.resolve(asked.to)
        return (walker or Walker(history)).to(at.node), None
    found = what_if(
        history, asked.without, to=asked.to, mode=asked.mode, only_after=asked.only_after
    )
    return found.state, found


def described_by(history: History, asked: StateRequest, executor: Executor) -> dict[str, Any]:
    """Which state it is and what it changes, as JSON; a mechanical what-if is shared out."""
    shared = _shared(history, asked, executor, None)
    return described(*(shared or replayed(history, asked)))


def _shared(
    history: History, asked: StateRequest, executor: Executor, out: Path | None
) -> tuple[ReplayedState, WhatIf] | None:
    """A mechanical what-if by several processes; None for what one does."""
    if executor.jobs == 1 or not asked.without or asked.mode != "mechanical":
        return None
    at = history.resolve(asked.to)
    selected = select(history, at, asked.without, asked.only_after)
    found = mechanical_by(executor, history, at, selected, out)
    return None if found is None else (found.state, found)


def described(state: ReplayedState, found: WhatIf | None) -> dict[str, Any]:
    """Which state it is, as JSON."""
    facts: dict[str, Any] = {**state.facts, "seq": state.seq}
    return facts if found is None else {**found.to_json(), **facts}


def save(
    history: History,
    asked: StateRequest,
    out: Path,
    walker: Walker | None = None,
    executor: Executor = ALONE,
) -> dict[str, Any]:
    """Write the state to a safetensors file; which state it is, and of a what-if what it is.

    The work is shared out to `executor`, but for a causal what-if and for what is no file.
    StorageError when it cannot be written.
    """
    is_file = out.is_file() or not out.exists()
    if executor.jobs > 1 and not asked.without and is_file:
        return parallel.save(history, asked.to, out, executor)
    shared = _shared(history, asked, executor, out) if is_file else None
    state, found = shared or replayed(history, asked, walker)
    words = None if found is None else found.words
    if shared is None:
        state.write(out, words)
    facts = {**state.facts, "seq": state.seq}
    return facts if words is None else {**facts, "what_if": words}
