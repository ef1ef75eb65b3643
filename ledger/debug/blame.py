"""Who touched a parameter: the events that changed it, and what it was before and after each.

The newest state of the parameter is rebuilt once; going back, each event's stored difference is
taken off again, so that a touch costs its own delta. On branches that rollbacks left behind the
digests tell where the value at hand stands, and it is rebuilt where it stands nowhere near.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from weightledger.ledger.adapters import PREFIX as ADAPTER
from weightledger.ledger.debug import numbers
from weightledger.ledger.debug.branches import Branches
from weightledger.ledger.debug.measured import unravel
from weightledger.ledger.debug.names import RULE, bare
from weightledger.ledger.errors import CorruptLedger, InvalidRequest, NotFound, Pruned
from weightledger.ledger.events import (
    ADAPTER_LOADED,
    ADAPTER_UNLOADED,
    UPDATED,
    Annotation,
    Event,
)
from weightledger.ledger.events.changes import FRAMES, WHOLE, TensorChange
from weightledger.ledger.history.positions import iso_time
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.steps import ReplayStep, apply_step
from weightledger.ledger.store import EventFilter
from weightledger.ledger.tensors.lanes import lanes, spec_of, tensor_digest
from weightledger.ledger.tensors.spec import WEIGHTS, TensorSpec

MAX_TOUCHES = 1000
INDEX = re.compile(r"^[0-9]{1,15}(,[0-9]{1,15})*$")

_PAGE = 64
_GLOB = re.compile(r"([*?[])")


@dataclass(frozen=True, slots=True)
class Touch:
    """One event that changed the parameter.

    `before` and `after` are the element's values, or the norms of the whole parameter; None where
    it did not exist. `known` is False where gc dropped what they are made of. `live` says whether
    the event is part of the live state, `undone_by` names the rollback that took it out.
    """

    event: Event
    note: Annotation | None
    changed: int
    before: Any
    after: Any
    known: bool
    live: bool
    undone_by: str | None


@dataclass(frozen=True, slots=True)
class Blame:
    """The touches of a parameter, newest first; of one element those that changed it.

    `spec` is the newest that is known, `index` the element in each dimension. `looked_at` counts
    the touches of the whole parameter that were looked at; where there are older ones, `next_seq`
    is the seq to go on from.
    """

    model: str
    parameter: str
    spec: TensorSpec | None
    index: tuple[int, ...] | None
    touches: Sequence[Touch]
    looked_at: int
    next_seq: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, as every face shows them; what is no finite number is a text."""
        spec, whole = self.spec, self.index is None
        names = ("norm_before", "norm_after") if whole else ("before", "after")
        return {
            "object": "blame",
            "model": self.model,
            "parameter": self.parameter,
            "dtype": spec.dtype if spec else None,
            "shape": list(spec.shape) if spec else None,
            "index": None if self.index is None else list(self.index),
            "touches": [
                {
                    "id": touch.event.name,
                    "seq": touch.event.seq,
                    "kind": touch.event.kind,
                    "recorded_at": iso_time(touch.event.recorded_at),
                    "actor": touch.note.actor if touch.note else None,
                    "reason": touch.note.reason if touch.note else None,
                    "operation": touch.event.body.get("operation"),
                    "rule": (touch.event.body.get("rule") or {}).get("id"),
                    "changed": touch.changed,
                    names[0]: _number(touch.before),
                    names[1]: _number(touch.after),
                    "known": touch.known,
                    "live": touch.live,
                    "undone_by": touch.undone_by,
                }
                for touch in self.touches
            ],
            "looked_at": self.looked_at,
            "next_seq": self.next_seq,
        }


def blame(
    history: History,
    parameter: str,
    index: str | int | None = None,
    *,
    limit: int = 50,
    max_seq: int | None = None,
) -> Blame:
    """The last `limit` touches of a parameter (up to seq `max_seq`), or of one of its elements.

    `index` is a number for each dimension (`3,7`), or one that counts in C order. Raises NotFound
    for a parameter that the model does not have, InvalidRequest for an index outside of it.
    """
    if not 1 <= limit <= MAX_TOUCHES:
        raise InvalidRequest(f"limit must be 1 to {MAX_TOUCHES}, got {limit}", param="limit")
    if isinstance(index, int) and not isinstance(index, bool):
        index = str(index)
    if index is not None and not (isinstance(index, str) and INDEX.fullmatch(index)):
        raise InvalidRequest(
            f"index must be numbers from 0 up, such as 17 or 3,7, got {index!r}", param="index"
        )
    full, spec = _full_name(history, parameter)
    found: list[tuple[Event, TensorChange]] = []
    for event, change in _touching(history, full, max_seq):
        if len(found) == limit:
            next_seq: int | None = event.seq
            break
        found.append((event, change))
    else:
        next_seq = None
    if not found and max_seq is None:
        spec = spec or _spec_at_head(history, full, parameter)
    place = None if index is None or spec is None else _place(index, spec)
    branches = Branches(history, found[-1][0].seq) if found else None
    notes = history.store.annotations([event.seq for event, _ in found])
    touches: list[Touch] = []
    for event, change, before, after, known in _walk(history, full, found):
        spec = spec or next(
            (spec_of(full, side) for side in (after, before) if side is not None), None
        )
        if place is None and index is not None and spec is not None:
            place = _place(index, spec)
        if index is None:
            values = [None if side is None else _norm(side, full) for side in (before, after)]
        else:
            sides = [_element(side, full, place) for side in (before, after)]
            if known and sides[0] == sides[1]:
                continue
            values = [None if side is None else side.value for side in sides]
        assert branches is not None
        undone = branches.undone_by(event.seq)
        touches.append(
            Touch(
                event=event,
                note=notes.get(event.seq),
                changed=change.changed,
                before=values[0],
                after=values[1],
                known=known,
                live=branches.live(event.seq),
                undone_by=undone.name if undone else None,
            )
        )
    return Blame(history.model, bare(full), spec, place, touches, len(found), next_seq)


def _full_name(history: History, parameter: str) -> tuple[str, TensorSpec | None]:
    """The full state name; and of a tied tensor's further name, the first one's."""
    if parameter.startswith((ADAPTER, RULE, WEIGHTS)):
        return parameter, None
    full = WEIGHTS + parameter
    if full in history.store.update_counts():
        return full, None
    state = history.head_state()
    first = state.aliases.get(full, full)
    return first, state.specs.get(first)


def _spec_at_head(history: History, full: str, parameter: str) -> TensorSpec:
    """Of a tensor that nothing touched; NotFound where there is none."""
    spec = history.head_state().specs.get(full)
    if spec is None:
        raise NotFound(
            f"Parameter {parameter!r} not found, and nothing ever changed one of that name; "
            "`weightledger diff v0 head` and GET /v1/models/parameters list names",
            param="parameter",
        )
    return spec


def _touching(
    history: History, full: str, max_seq: int | None
) -> Iterator[tuple[Event, TensorChange]]:
    """The events that changed a tensor, newest first."""
    if full.startswith(ADAPTER):
        kinds, pattern = [ADAPTER_LOADED, ADAPTER_UNLOADED, UPDATED], None
    elif full.startswith(RULE):
        kinds, pattern = [UPDATED], None
    else:
        kinds, pattern = [UPDATED], _GLOB.sub(r"[\1]", bare(full))
    while True:
        where = EventFilter(kinds=kinds, parameter=pattern, max_seq=max_seq)
        page = history.events(where, limit=_PAGE)
        for event in page:
            for change in event.changes:
                if change.name == full:
                    yield event, change
        if len(page) < _PAGE:
            return
        max_seq = page[-1].seq - 1


def _walk(
    history: History, full: str, found: Sequence[tuple[Event, TensorChange]]
) -> Iterator[tuple[Event, TensorChange, Tensor | None, Tensor | None, bool]]:
    """Each event with the tensor before and after it, and whether these are known.

    The tensors are good until the next step: going back writes to them.
    """
    tensor: Tensor | None = None
    digest: bytes | None = None
    verified = True
    for event, change in found:
        try:
            if change.after is None:
                after = None
            elif (
                digest == change.after
                and tensor is not None
                and change.spec_after in (None, spec_of(full, tensor))
            ):
                after = tensor
            else:
                _verify(full, tensor, digest, verified)
                after = history.tensors(event.node, event.state_after, [full])[full]
                verified = True
            if change.before is None:
                before: Tensor | None = None
            elif history.pruned(event.seq):  # what was before it may be kept all the same
                before = _at_parent(history, event, full)
            elif change.form == FRAMES and after is not None:
                before = _undone(history, event, change, after.clone())
                verified = False
            elif change.form == WHOLE and change.spec_before is not None:
                before = history.whole(change.spec_before, change.before)
            else:
                before = _at_parent(history, event, full)
        except Pruned:
            tensor, digest, verified = None, None, True
            yield event, change, None, None, False
            continue
        yield event, change, before, after, True
        tensor, digest = before, change.before
    _verify(full, tensor, digest, verified)


def _undone(history: History, event: Event, change: TensorChange, tensor: Tensor) -> Tensor:
    """The tensor taken back over one event, in place."""
    payload = memoryview(history.store.payload(event))
    at = 0
    for other in event.changes:
        if other.name == change.name:
            break
        at += other.size
    spec = spec_of(change.name, tensor)
    apply_step(tensor, ReplayStep(event.seq, change, True, payload[at : at + change.size], spec))
    return tensor


def _at_parent(history: History, event: Event, full: str) -> Tensor:
    assert event.parent is not None and event.state_before is not None
    return history.tensors(event.parent, event.state_before, [full])[full]


def _verify(full: str, tensor: Tensor | None, digest: bytes | None, verified: bool) -> None:
    """What was taken back event by event is what the log recorded, or CorruptLedger."""
    if tensor is not None and not verified and tensor_digest(tensor) != digest:
        raise CorruptLedger(f"tensor {full!r} taken back is not what the log recorded")


@dataclass(frozen=True, slots=True)
class _Element:
    """One element of a tensor. Two are the same if their bits are: a NaN is itself, and -0.0 is not
    0.0."""

    dtype: str
    bits: bytes
    value: Any = field(compare=False)


def _element(tensor: Tensor | None, full: str, place: tuple[int, ...] | None) -> _Element | None:
    """The element at a place; None where the tensor has none there."""
    if tensor is None or place is None:
        return None
    spec = spec_of(full, tensor)
    flat = _flat(place, spec.shape)
    if flat is None:
        return None
    each, of_all = spec.element.lanes, lanes(tensor, full)
    bits = of_all[flat * each : (flat + 1) * each].tobytes()
    return _Element(spec.dtype, bits, numbers.number(spec, of_all, flat))


def _norm(tensor: Tensor, full: str) -> float:
    return numbers.norm(spec_of(full, tensor), lanes(tensor, full))


def _number(value: Any) -> Any:
    """A value as JSON has it, which knows no infinity and no NaN."""
    if isinstance(value, list):
        return [_number(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _place(index: str, spec: TensorSpec) -> tuple[int, ...]:
    """The element that an index means, in each dimension; InvalidRequest where there is none."""
    each = tuple(int(part) for part in index.split(","))
    if len(each) == 1 and each[0] < spec.numel:
        return tuple(unravel(each[0], spec.shape))
    if _flat(each, spec.shape) is not None:
        return each
    last = ",".join(str(size - 1) for size in spec.shape)
    raise InvalidRequest(
        f"index {index} is outside of {bare(spec.name)!r} {list(spec.shape)}: "
        + (
            f"the last is {last or 0}, or {spec.numel - 1} counted through"
            if spec.numel
            else "it has no elements"
        ),
        param="index",
    )


def _flat(place: Sequence[int], shape: tuple[int, ...]) -> int | None:
    """The place in C order; None where it is outside."""
    if len(place) != len(shape):
        return None
    flat = 0
    for at, size in zip(place, shape, strict=True):
        if at >= size:
            return None
        flat = flat * size + at
    return flat
