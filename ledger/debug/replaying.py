"""Any state again, as it was or without some events: in memory, and as files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightledger.ledger.debug import parallel
from weightledger.ledger.debug.walking import ReplayedState, Walker
from weightledger.ledger.debug.whatif.asking import what_if
from weightledger.ledger.debug.whatif.causal_parallel import causal_by
from weightledger.ledger.debug.whatif.parallel import mechanical_by
from weightledger.ledger.debug.whatif.selection import select
from weightledger.ledger.debug.whatif.state import Mode, WhatIf
from weightledger.ledger.errors import CannotDerive, WhatIfRefused
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
    """Which state it is and what it changes, as JSON; a what-if is shared out."""
    shared = _shared(history, asked, executor, None)
    return described(*(shared or replayed(history, asked)))


def described_each(
    history: History, asked: StateRequest, executor: Executor
) -> list[dict[str, Any]]:
    """The what-ifs that leave out one of `without` each, as JSON, in that order.

    One that cannot be told has "reason" instead, why not. Several are shared out, causal ones with
    the proof that they have in common. Raises what `what_if` does of names that name no update.
    """
    at = history.resolve(asked.to)
    selected = [select(history, at, [name], asked.only_after) for name in asked.without]
    found: Sequence[WhatIf | WhatIfRefused] | None = None
    if asked.mode == "causal":
        found = causal_by(executor, history, at, selected)
    if found is None:
        found = [_one(history, replace(asked, without=[name]), executor) for name in asked.without]
    return [
        {"without": [event.name for event in one.without], "reason": str(what)}
        if isinstance(what, WhatIfRefused)
        else described(what.state, what)
        for one, what in zip(selected, found, strict=True)
    ]


def _one(history: History, asked: StateRequest, executor: Executor) -> WhatIf | WhatIfRefused:
    try:
        shared = _shared(history, asked, executor, None)
        what = shared[1] if shared is not None else replayed(history, asked)[1]
    except WhatIfRefused as error:
        return error
    assert what is not None, "events are left out"
    return what


def _shared(
    history: History, asked: StateRequest, executor: Executor, out: Path | None
) -> tuple[ReplayedState, WhatIf] | None:
    """A what-if by several processes; None for what one does."""
    if executor.jobs == 1 or not asked.without:
        return None
    at = history.resolve(asked.to)
    selected = select(history, at, asked.without, asked.only_after)
    if asked.mode == "mechanical":
        taken_out = mechanical_by(executor, history, at, selected, out)
        return None if taken_out is None else (taken_out.state, taken_out)
    derived = causal_by(executor, history, at, [selected], out)
    if derived is None:
        return None
    (what,) = derived
    if isinstance(what, CannotDerive):
        raise what
    return what.state, what


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

    The work is shared out to `executor`, but for what is no file.
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
