"""Mechanical: take the bit differences of some events out of a state.

Defined where the elements that they changed were not touched again by an event that stays: there
the bits are those from before. Tensors beside the weights, and those that came, went or changed
their shape, are taken as a whole.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from weightledger.ledger.debug.walking import ReplayedState, Walker
from weightledger.ledger.debug.whatif.selection import Selected
from weightledger.ledger.debug.whatif.state import WhatIf
from weightledger.ledger.errors import NotDefined
from weightledger.ledger.events import Event
from weightledger.ledger.events.changes import WHOLE
from weightledger.ledger.history.positions import Position
from weightledger.ledger.history.reader import History
from weightledger.ledger.tensors.lanes import clone, lanes, tensor_digest
from weightledger.ledger.tensors.spec import TensorSpec

_MOST_NAMED = 8

Moved = dict[str, tuple[TensorSpec | None, bytes | None]]
"""Tensors of a state that become others: spec and digest, None for one that goes."""


@dataclass(slots=True)
class _Taken:
    """What is to be put back into one tensor: the elements (by lanes; None for all of it) and the
    tensor they are taken from, None where there was none."""

    spec: TensorSpec | None
    before: torch.Tensor | None
    where: NDArray[np.bool_] | None


@dataclass(slots=True)
class TakenOut:
    """What is put back into which tensors, and the events that touched those elements again."""

    taken: dict[str, _Taken] = field(default_factory=dict)
    touched_again: list[Event] = field(default_factory=list)

    def put_back(self, actual: ReplayedState) -> tuple[ReplayedState, Moved]:
        """The state without the events, of one that has these tensors at least, and what moved."""
        tensors = dict(actual.tensors)
        moved: Moved = {}
        for name, taken in self.taken.items():
            if taken.where is None:
                if taken.before is None:
                    tensors.pop(name, None)
                    moved[name] = (None, None)
                    continue
                tensors[name] = taken.before
            else:
                assert taken.before is not None
                made = clone(actual.tensors[name])
                lanes(made)[taken.where] = lanes(taken.before)[taken.where]
                tensors[name] = made
            moved[name] = (taken.spec, tensor_digest(tensors[name]))
        return ReplayedState(actual.model, actual.seq, actual.digest.moved(moved), tensors), moved


def mechanical(history: History, at: Position, selected: Selected) -> WhatIf:
    """The state without the selected events; NotDefined names those that touched it again."""
    out, _ = take_out(history, at, selected, changed_by(selected))
    require_defined(selected, out.touched_again)
    actual = Walker(history).to(at.node)
    return WhatIf("mechanical", at, selected.without, out.put_back(actual)[0], actual)


def changed_by(selected: Selected) -> frozenset[str]:
    """The tensors that the selected events changed, by full name."""
    return frozenset(change.name for event in selected.without for change in event.changes)


def take_out(
    history: History, at: Position, selected: Selected, names: Collection[str]
) -> tuple[TakenOut, ReplayedState]:
    """What the selected events did to some tensors, and these tensors as they are at `at`."""
    walker = Walker(history, names)
    state = walker.to(selected.base)
    out = TakenOut()
    left_out = {event.seq for event in selected.without}
    for event in history.require_all(selected.way):
        changes = [change for change in event.changes if change.name in names]
        if not changes:
            continue
        if event.parent is not None and event.parent != state.seq:
            state = walker.to(event.parent)
        after = walker.to(event.seq)
        for change in changes:
            whole = change.form == WHOLE
            if event.seq in left_out:
                _take(out, change.name, state, after, whole)
            elif _touches(out, change.name, state, after, whole):
                out.touched_again.append(event)
        state = after
    return out, walker.to(at.node)


def require_defined(selected: Selected, touched_again: Sequence[Event]) -> None:
    """NotDefined where events that stay, told in their order, touched the same elements."""
    if not touched_again:
        return
    again = list(dict.fromkeys(event.name for event in touched_again))
    more = f" and {len(again) - _MOST_NAMED} more" if len(again) > _MOST_NAMED else ""
    raise NotDefined(
        f"what {', '.join(event.name for event in selected.without)} changed was touched again "
        f"by {', '.join(again[:_MOST_NAMED])}{more}, so taking the difference out is not "
        "defined; leave those out too, or ask for the causal mode"
    )


def _take(
    out: TakenOut, name: str, before: ReplayedState, after: ReplayedState, whole: bool
) -> None:
    known = out.taken.get(name)
    if whole or (known is not None and known.where is None):
        if known is None:
            out.taken[name] = _Taken(before.digest.specs.get(name), before.tensors.get(name), None)
        return
    where = lanes(before.tensors[name]) != lanes(after.tensors[name])
    if known is None:
        out.taken[name] = _Taken(before.digest.specs[name], clone(before.tensors[name]), where)
        return
    assert known.where is not None and known.before is not None
    # Elements that one of these events changed before keep what they were before that.
    fresh = where & ~known.where
    lanes(known.before)[fresh] = lanes(before.tensors[name])[fresh]
    known.where |= where


def _touches(
    out: TakenOut, name: str, before: ReplayedState, after: ReplayedState, whole: bool
) -> bool:
    known = out.taken.get(name)
    if known is None:
        return False
    if whole or known.where is None:
        return True
    return bool((known.where & (lanes(before.tensors[name]) != lanes(after.tensors[name]))).any())
