"""Mechanical: take the bit differences of some events out of a state.

Defined where the elements that they changed were not touched again by an event that stays: there
the bits are those from before. Tensors beside the weights, and those that came, went or changed
their shape, are taken as a whole.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from weightledger.ledger.debug.walking import ReplayedState, Walker
from weightledger.ledger.debug.whatif.selection import Selected
from weightledger.ledger.debug.whatif.state import WhatIf
from weightledger.ledger.errors import NotDefined
from weightledger.ledger.events.changes import WHOLE
from weightledger.ledger.history.positions import Position
from weightledger.ledger.history.reader import History
from weightledger.ledger.tensors.lanes import clone, lanes, tensor_digest
from weightledger.ledger.tensors.spec import TensorSpec

_MOST_NAMED = 8


@dataclass(slots=True)
class _Taken:
    """What is to be put back into one tensor: the elements (by lanes; None for all of it) and the
    tensor they are taken from, None where there was none."""

    spec: TensorSpec | None
    before: torch.Tensor | None
    where: NDArray[np.bool_] | None


@dataclass(slots=True)
class _Out:
    taken: dict[str, _Taken] = field(default_factory=dict)
    touched_again: list[str] = field(default_factory=list)


def mechanical(history: History, at: Position, selected: Selected) -> WhatIf:
    """The state without the selected events; NotDefined names those that touched it again."""
    walker = Walker(history)
    state = walker.to(selected.base)
    out = _Out()
    left_out = {event.seq for event in selected.without}
    names = {change.name for event in selected.without for change in event.changes}
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
                out.touched_again.append(event.name)
        state = after
    if out.touched_again:
        again = list(dict.fromkeys(out.touched_again))
        more = f" and {len(again) - _MOST_NAMED} more" if len(again) > _MOST_NAMED else ""
        raise NotDefined(
            f"what {', '.join(event.name for event in selected.without)} changed was touched again "
            f"by {', '.join(again[:_MOST_NAMED])}{more}, so taking the difference out is not "
            "defined; leave those out too, or ask for the causal mode"
        )
    actual = walker.to(at.node)
    return WhatIf("mechanical", at, selected.without, _put_back(actual, out), actual)


def _take(out: _Out, name: str, before: ReplayedState, after: ReplayedState, whole: bool) -> None:
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
    out: _Out, name: str, before: ReplayedState, after: ReplayedState, whole: bool
) -> bool:
    known = out.taken.get(name)
    if known is None:
        return False
    if whole or known.where is None:
        return True
    return bool((known.where & (lanes(before.tensors[name]) != lanes(after.tensors[name]))).any())


def _put_back(actual: ReplayedState, out: _Out) -> ReplayedState:
    tensors = dict(actual.tensors)
    moved: dict[str, tuple[TensorSpec | None, bytes | None]] = {}
    for name, taken in out.taken.items():
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
    return ReplayedState(actual.model, actual.seq, actual.digest.moved(moved), tensors)
