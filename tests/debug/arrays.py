"""What an independent program knows of a history: each state as plain arrays, and where each came
from. It shares no code with what it is compared with."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from weightledger import InvalidRequest, Log
from weightledger.ledger.debug.bisect.bisection import Rules
from weightledger.ledger.debug.walking import ReplayedState
from weightledger.ledger.errors import NotDefined
from weightledger.ledger.tensors.lanes import lanes

BESIDE = ("adapter/", "rule/")
"""How the names of tensors beside the weights begin, which are taken as a whole."""


@dataclass(frozen=True)
class Bits:
    """A tensor as its dtype, its shape and the bytes of each element."""

    dtype: str
    shape: tuple[int, ...]
    bits: bytes

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Bits":
        return cls(str(tensor.dtype), tuple(tensor.shape), lanes(tensor).tobytes())

    @property
    def elements(self) -> NDArray[np.uint8]:
        count = int(np.prod(self.shape))
        size = len(self.bits) // count if count else 1
        return np.frombuffer(self.bits, np.uint8).reshape(count, size)

    def differing(self, other: "Bits") -> NDArray[np.bool_]:
        changed: NDArray[np.bool_] = (self.elements != other.elements).any(axis=1)
        return changed


State = dict[str, Bits]


@dataclass
class Truth:
    """Every state-changing event's state, what it was applied to, and where rollbacks led."""

    states: dict[int, State]
    parents: dict[int, int | None] = field(default_factory=lambda: {0: None})
    led_to: dict[int, int] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    head: int = 0

    @property
    def seqs(self) -> list[int]:
        return list(self.states)

    def node(self, seq: int) -> int:
        return self.led_to.get(seq, seq)

    def way(self, seq: int) -> list[int]:
        """From the first state to one, rollbacks apart."""
        way: list[int] = []
        at: int | None = self.node(seq)
        while at is not None:
            way.append(at)
            at = self.parents[at]
        return way[::-1]

    def between(self, one: int, other: int) -> tuple[list[int], list[int]]:
        """What is taken back and what is done on the way from a state to another."""
        up, down = self.way(one), self.way(other)
        return [s for s in reversed(up) if s not in down], [s for s in down if s not in up]

    def undone_by(self, seq: int) -> int | None:
        if seq in self.way(self.head):
            return None
        return max(
            at
            for at, left in self.left.items()
            if at > seq and seq in self.way(left) and seq not in self.way(at)
        )

    def without(self, at: int, out: Sequence[int]) -> State | None:
        """The state without some events; None where what they changed was touched again."""
        taken: dict[str, tuple[NDArray[np.bool_] | None, Bits | None, NDArray[np.uint8]]] = {}
        for seq in self.way(at)[1:]:
            before, after = self.states[self.parents[seq] or 0], self.states[seq]
            for name in {*before, *after}:
                was, is_ = before.get(name), after.get(name)
                if was == is_:
                    continue
                whole = name.startswith(BESIDE) or was is None or is_ is None
                part = None if whole else was.differing(is_)
                held = taken.get(name)
                if seq not in out:
                    if held and (held[0] is None or part is None or (held[0] & part).any()):
                        return None
                elif held is None:
                    taken[name] = (
                        part,
                        was,
                        was.elements.copy() if was else np.zeros((0, 1), "u1"),
                    )
                elif held[0] is not None and part is not None and was is not None:
                    fresh = part & ~held[0]
                    held[2][fresh] = was.elements[fresh]
                    taken[name] = (held[0] | part, held[1], held[2])
        state = dict(self.states[at])
        for name, (part, was, values) in taken.items():
            if part is None:
                state.pop(name, None)
                state |= {} if was is None else {name: was}
            else:
                elements = state[name].elements.copy()
                elements[part] = values[part]
                state[name] = Bits(state[name].dtype, state[name].shape, elements.tobytes())
        return state


def shown(log: Log) -> State:
    """The live tensors, by bare name but for those beside the weights."""
    return {
        name.removeprefix("weights/"): Bits.of(log.projector.tensor(name))
        for name in log.projector.live.state.specs
    }


def rebuilt(tensors: dict[str, torch.Tensor]) -> State:
    return {name.removeprefix("weights/"): Bits.of(one) for name, one in tensors.items()}


def states_and_names(log: Log, truth: Truth) -> None:
    changes = truth.seqs
    for back, seq in enumerate(reversed(changes)):
        tied = {name: truth.states[seq][first] for name, first in log.first_names.items()}
        assert rebuilt(log.state(f"seq:{seq}")) == truth.states[seq] | tied
        assert log.history.resolve(f"head~{back}").node == truth.node(seq)
        state = log.replayed(f"seq:{seq}")
        assert rebuilt(state.tensors) == truth.states[seq]
        naming = [number for number, node in truth.versions.items() if node == truth.node(seq)]
        named = None if not naming else log.history.event(f"v{max(naming)}").name
        assert state.version == named
    for number, node in truth.versions.items():
        assert log.history.resolve(f"v{number}").node == node
    ancestors = truth.way(truth.head)[::-1]
    active = next((at for at in ancestors if at in truth.versions.values()), None)
    for one in log.versions():
        assert one.is_active == (
            active is not None
            and one.version_id.split("_")[0]
            == f"v{max(number for number, node in truth.versions.items() if node == active)}"
        )


def compared(log: Log, truth: Truth, random_: random.Random) -> None:
    one, other = random_.choice(truth.seqs), random_.choice(truth.seqs)
    found = log.diff(f"seq:{one}", f"seq:{other}").to_json()
    old, new = truth.states[one], truth.states[other]
    names = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    assert {tensor["name"] for tensor in found["by_tensor"]} == names
    for tensor in found["by_tensor"]:
        was, is_ = old.get(tensor["name"]), new.get(tensor["name"])
        if was is None or is_ is None:
            assert tensor["kind"] == ("added" if was is None else "removed")
        elif (was.dtype, was.shape) != (is_.dtype, is_.shape):
            assert tensor["kind"] == "replaced"
        else:
            changed = was.differing(is_)
            assert (tensor["kind"], tensor["changed"]) == ("changed", int(changed.sum()))
            first = np.unravel_index(int(changed.argmax()), was.shape) if was.shape else ()
            assert tensor["first_index"] == [int(at) for at in first]


def left_out(log: Log, truth: Truth, random_: random.Random) -> None:
    at = random_.choice(truth.seqs)
    way = truth.way(at)[1:]
    if not way:
        return
    out = random_.sample(way, min(len(way), random_.randint(1, 3)))
    expected = truth.without(truth.node(at), out)
    names = [f"seq:{seq}" for seq in out]
    if expected is None:
        with pytest.raises(NotDefined):
            log.what_if(names, to=f"seq:{at}")
    else:
        assert rebuilt(log.what_if(names, to=f"seq:{at}").state.tensors) == expected


def searched(log: Log, truth: Truth, random_: random.Random) -> None:
    """Any way, any culprit on it, some states that cannot be judged, judges of every kind."""
    good, bad = random_.choice(truth.seqs), random_.choice(truth.seqs)
    back, on = truth.between(good, bad)
    if not on:
        with pytest.raises(InvalidRequest):
            log.bisect(f"seq:{good}", f"seq:{bad}", lambda state: True)
        return
    steps = [(seq, True) for seq in back] + [(seq, False) for seq in on]
    states = [truth.node(good), *(truth.parents[seq] or 0 for seq in back), *on]
    culprit = random_.choice([1, len(steps), random_.randint(1, len(steps))])
    share = random_.choice([0, 0.4, 1])
    unknown = {place for place in range(1, len(steps)) if random_.random() < share}

    def judge(state: ReplayedState) -> bool | None:
        place = states.index(state.seq)
        assert rebuilt(state.tensors) == truth.states[state.seq]
        return None if place in unknown else place < culprit

    rules = random_.choice([None, Rules(noisy=True, rate=0.1), Rules(noisy=True)])
    found = log.bisect(f"seq:{good}", f"seq:{bad}", judge, rules=rules)
    first, last = culprit, culprit
    while first - 1 in unknown:
        first -= 1
    while last in unknown:
        last += 1
    assert found["done"]
    # A search with noise is over once it is sure enough, which it may be of all steps but one.
    least = last - first + 1 if rules is None else -(-95 * (last - first + 1) // 100)
    assert least <= found["suspects"] <= last - first + 1
    told = [found["first_bad"]] if found["first_bad"] else found["suspected"][: found["suspects"]]
    assert {(one["seq"], one["undone"]) for one in told} <= set(steps[first - 1 : last])


def blamed(log: Log, truth: Truth, name: str) -> None:
    touched = {
        seq: (truth.states[parent].get(name), truth.states[seq].get(name))
        for seq, parent in truth.parents.items()
        if parent is not None and truth.states[parent].get(name) != truth.states[seq].get(name)
    }
    if not touched and name not in truth.states[truth.head]:
        return
    whole = log.blame(name, limit=1000)
    assert [t.event.seq for t in whole.touches if t.event.seq in touched] == sorted(touched)[::-1]
    for touch in whole.touches:
        assert touch.live == (touch.event.seq in truth.way(truth.head))
        undone = truth.undone_by(touch.event.seq)
        assert touch.undone_by == (None if undone is None else f"event_{undone}")
    shape = whole.spec.shape if whole.spec else ()
    for index in np.ndindex(*shape):
        found = log.blame(name, ",".join(map(str, index)) or "0", limit=1000)
        assert [touch.event.seq for touch in found.touches] == [
            seq
            for seq in sorted(touched, reverse=True)
            if element(touched[seq][0], index) != element(touched[seq][1], index)
        ]


def element(tensor: Bits | None, index: tuple[int, ...]) -> tuple[str, bytes] | None:
    """The dtype and the bits of an element; None where the tensor has none there."""
    if tensor is None or len(index) != len(tensor.shape):
        return None
    if any(at >= size for at, size in zip(index, tensor.shape, strict=True)):
        return None
    flat = int(np.ravel_multi_index(index, tensor.shape)) if index else 0
    return tensor.dtype, tensor.elements[flat].tobytes()
