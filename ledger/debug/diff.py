"""What differs between two states of a model.

Tensors with the same digest are the same and are never read. The others are rebuilt a few at a
time, the later state from the earlier one where that is nearer than a snapshot, so that memory
holds one tensor of each state (or 16 MiB of small ones) whatever the model weighs.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weightledger.ledger.debug.measured import Memo, TensorDiff, finite, measure
from weightledger.ledger.debug.names import layer_of, module_of
from weightledger.ledger.debug.numbers import ratio
from weightledger.ledger.debug.rank import Which
from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.history.positions import Position
from weightledger.ledger.history.reader import History, KnownState
from weightledger.ledger.history.reading import reading
from weightledger.ledger.parallel import Executor, Task, Told, in_order
from weightledger.ledger.parallel.local import ALONE
from weightledger.ledger.parallel.shares import Share, shares, worth
from weightledger.ledger.tensors.lanes import clone
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.tensors.state import StateDigest

_SMALL_BYTES = 16 << 20

# Bytes of tensors of both states that are restored and compared in a second.
_BYTES_A_SECOND = 1 << 27


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """The tensors of one layer or module: `elements` of all of them, norms of those that changed.

    `before` and `change` are None where no tensor of it can be compared.
    """

    name: str
    tensors: int
    tensors_changed: int
    elements: int
    changed: int
    largest: float | None
    change: float | None
    before: float | None
    lost: int

    @property
    def relative(self) -> float | None:
        """The norm of all changes over the norm before of what changed."""
        return (
            None if self.change is None or self.before is None else ratio(self.change, self.before)
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tensors": self.tensors,
            "tensors_changed": self.tensors_changed,
            "elements": self.elements,
            "changed": self.changed,
            "share": self.changed / self.elements if self.elements else 0.0,
            "largest_change": finite(self.largest),
            "change_norm": finite(self.change),
            "relative_norm": finite(self.relative),
            "became_not_finite": self.lost,
        }


@dataclass(frozen=True, slots=True)
class StateDiff:
    """How the state at `before` differs from the one at `after`; what moved farthest comes first.

    `tensors`, `layers` and `modules` have those that differ; `unchanged` counts the tensors that
    are the same.
    """

    model: str
    before: Position
    after: Position
    tensors: Sequence[TensorDiff]
    layers: Sequence[TensorGroup]
    modules: Sequence[TensorGroup]
    total: TensorGroup
    unchanged: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, as every face shows them."""
        total = self.total.to_json()
        del total["name"]
        return {
            "object": "diff",
            "model": self.model,
            "from": _side(self.before),
            "to": _side(self.after),
            **total,
            "tensors_unchanged": self.unchanged,
            "layers": [group.to_json() for group in self.layers],
            "modules": [group.to_json() for group in self.modules],
            "by_tensor": [tensor.to_json() for tensor in self.tensors],
        }


def diff(
    history: History,
    before: str,
    after: str,
    *,
    ranks: Which = "auto",
    known: KnownState | None = None,
    memo: Memo | None = None,
    executor: Executor = ALONE,
) -> StateDiff:
    """Compare the states at two positions of one model, on whatever branches they stand.

    `known` is a state at hand, such as the live one; `memo` keeps measures for the next time. What
    is much is shared out to `executor`, by tensors.
    Raises NotFound for a position that names nothing, Pruned for one that gc dropped.
    """
    old, new = history.resolve(before), history.resolve(after)
    start = digests(history, old, known)
    end = digests(history, new, KnownState(old.node, start, _no_tensor))
    names = sorted(differing(start, end))
    ends = (old, start), (new, end)
    parts = _shares(names, start, end, executor)
    if len(parts) > 1:
        measured = _measured_by(executor, history, ends, parts, ranks)
    else:
        measured = list(_measured(history, *ends, names, ranks, known, memo))
    specs = {**start.specs, **end.specs}
    measured.sort(key=lambda one: (*(-part for part in one.moved), one.name))
    return StateDiff(
        history.model,
        old,
        new,
        measured,
        grouped(measured, specs.values(), layer_of),
        grouped(measured, specs.values(), module_of),
        _group("all", measured, list(specs.values())),
        len(specs) - len(names),
    )


def differing(one: StateDigest, other: StateDigest) -> frozenset[str]:
    """The tensors of two states that are not the same in both, by full name."""
    return frozenset(name for name in {*one.specs, *other.specs} if not one.same(other, name))


def digests(history: History, at: Position, known: KnownState | None = None) -> StateDigest:
    """The state at a position without its tensors; CorruptLedger where it is not the recorded."""
    state = history.digests(at.node, known)
    if state.value != at.state:
        raise CorruptLedger(
            f"the digests recorded on the way to event {at.node} give another state than the log "
            "says",
            seq=at.node,
        )
    return state


def grouped(
    measured: Iterable[TensorDiff], specs: Iterable[TensorSpec], group_of: Callable[[str], str]
) -> list[TensorGroup]:
    """Measures by layer or by module, what moved farthest first."""
    members: dict[str, list[TensorDiff]] = {}
    for one in measured:
        members.setdefault(group_of(one.name), []).append(one)
    owned: dict[str, list[TensorSpec]] = {}
    for spec in specs:
        owned.setdefault(group_of(spec.name), []).append(spec)
    groups = [_group(name, some, owned[name]) for name, some in members.items()]

    def moved(group: TensorGroup) -> tuple[float, float, str]:
        relative = group.relative
        return (-group.lost, -(math.inf if relative is None else relative), group.name)

    return sorted(groups, key=moved)


def batches(specs: Sequence[TensorSpec]) -> Iterator[list[TensorSpec]]:
    """Tensors that are held together: never more bytes than the largest has, or 16 MiB."""
    most = max([_SMALL_BYTES, *(spec.nbytes for spec in specs)])
    batch: list[TensorSpec] = []
    size = 0
    for spec in specs:
        if batch and size + spec.nbytes > most:
            yield batch
            batch, size = [], 0
        batch.append(spec)
        size += spec.nbytes
    if batch:
        yield batch


def _shares(
    names: Sequence[str], start: StateDigest, end: StateDigest, executor: Executor
) -> list[Share]:
    """The shares of the tensors that differ which are worth a task each."""
    specs = {name: start.specs.get(name) or end.specs[name] for name in names}
    work = {name: spec.nbytes for name, spec in specs.items()}
    return shares(work, worth(sum(work.values()) / _BYTES_A_SECOND, executor))


def _measured_by(
    executor: Executor,
    history: History,
    ends: tuple[tuple[Position, StateDigest], tuple[Position, StateDigest]],
    parts: Sequence[Share],
    ranks: Which,
) -> list[TensorDiff]:
    """The measures of all shares."""
    data = {
        "url": history.store.home.url,
        "model": history.model,
        "nodes": [at.node for at, _ in ends],
        "ranks": ranks,
    }
    tasks = [Task(f"{__name__}:measure_share", {**data, "share": one.to_json()}) for one in parts]
    told = in_order(executor.run(tasks), len(tasks))
    return [TensorDiff.from_plain(one) for part in told for one in part]


def measure_share(
    told: Told, url: str, model: str, nodes: Sequence[int], ranks: Which, share: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """How a share's tensors differ between two nodes; see `_measured`."""
    with reading(url, model) as history:
        old, new = (history.resolve(f"seq:{node}") for node in nodes)
        start, end = digests(history, old), digests(history, new)
        names = sorted(Share(**share).of(differing(start, end)))
        measured = _measured(history, (old, start), (new, end), names, ranks, None, None)
        plain = []
        for one in measured:
            plain.append(one.to_plain())
            told(len(plain), len(names))
    return plain


def _measured(
    history: History,
    old: tuple[Position, StateDigest],
    new: tuple[Position, StateDigest],
    names: Sequence[str],
    ranks: Which,
    known: KnownState | None,
    memo: Memo | None,
) -> Iterator[TensorDiff]:
    (before, start), (after, end) = old, new
    keys = {
        name: (
            *(name, ranks, start.specs.get(name), end.specs.get(name)),
            *(start.digests.get(name), end.digests.get(name)),
        )
        for name in names
    }
    unknown = []
    for name in names:
        kept = memo.get(keys[name]) if memo else None
        if kept is None:
            unknown.append(start.specs[name] if name in start.specs else end.specs[name])
        else:
            yield kept
    for batch in batches(unknown):
        at_start = [spec.name for spec in batch if spec.name in start.specs]
        at_end = [spec.name for spec in batch if spec.name in end.specs]
        olds = history.tensors(before.node, before.state, at_start, known=known) if at_start else {}
        beside = KnownState(before.node, start, copies(olds))
        news = history.tensors(after.node, after.state, at_end, known=beside) if at_end else {}
        for spec in batch:
            name = spec.name
            one = measure(
                name,
                (start.specs[name], olds[name]) if name in olds else None,
                (end.specs[name], news[name]) if name in news else None,
                ranks,
            )
            if memo:
                memo.put(keys[name], one)
            yield one


def copies(tensors: Mapping[str, Tensor]) -> Callable[[str], Tensor]:
    """Gives a copy of one of these tensors by its name."""
    return lambda name: clone(tensors[name])


def _group(name: str, measured: Sequence[TensorDiff], owned: Sequence[TensorSpec]) -> TensorGroup:
    compared = [one.numbers for one in measured if one.numbers]
    return TensorGroup(
        name=name,
        tensors=len(owned),
        tensors_changed=len(measured),
        elements=sum(spec.numel for spec in owned),
        changed=sum(one.changed for one in measured),
        largest=max((one.largest for one in compared), default=None),
        change=math.hypot(*(one.change_norm for one in compared)) if compared else None,
        before=math.hypot(*(one.norm_before for one in compared)) if compared else None,
        lost=sum(one.lost for one in compared),
    )


def _no_tensor(name: str) -> Any:
    raise AssertionError(f"tensor {name!r} was read where digests were asked for")


def _side(position: Position) -> dict[str, Any]:
    return {
        "position": position.text,
        "id": position.event.name,
        "seq": position.node,
        "digest": position.state.hex(),
    }
