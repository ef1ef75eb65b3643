"""What is known of how one tensor became another, and the measures kept by their digests."""

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from weightledger.ledger.debug import numbers
from weightledger.ledger.debug.names import bare
from weightledger.ledger.debug.numbers import Numbers
from weightledger.ledger.debug.rank import Which, effective_rank
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.spec import TensorSpec

Kind = Literal["changed", "added", "removed", "replaced"]
"""`replaced` is a tensor that has another dtype or shape now: no number compares the two."""

_MOST_KEPT = 16_384


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """How one tensor of two states differs; `name` is its full state name, `spec` the later one.

    `changed` counts elements. `numbers` are None but for a `changed` tensor; of one that was added
    or removed there is the norm it has or had. `rank` is the effective rank of the change (see
    `rank`), `rank_note` why there is none where one could be asked for.
    """

    name: str
    kind: Kind
    spec: TensorSpec
    changed: int
    numbers: Numbers | None
    norm_before: float | None
    norm_after: float | None
    rank: float | None = None
    rank_note: str | None = None

    @property
    def relative(self) -> float | None:
        """The norm of the change over the norm before; None where it is not defined."""
        return self.numbers.relative if self.numbers else None

    @property
    def moved(self) -> tuple[float, float]:
        """How far it moved, to sort by: what has lost finite elements before everything, then what
        has no measure because there was nothing before, then by relative norm."""
        lost = float(self.numbers.lost) if self.numbers else 0.0
        if self.relative is not None:
            return lost, self.relative
        return lost, math.inf if self.numbers is None or self.numbers.change_norm else 0.0

    def to_plain(self) -> dict[str, Any]:
        """All of it, as plain data that `from_plain` reads."""
        return asdict(self)

    @classmethod
    def from_plain(cls, told: Mapping[str, Any]) -> "TensorDiff":
        spec, some = told["spec"], told["numbers"]
        return cls(
            **{
                **told,
                "spec": TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])),
                "numbers": None if some is None else Numbers(**some),
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; a number that is not defined is None."""
        some, first = self.numbers, self.numbers.first if self.numbers else None
        return {
            "name": bare(self.name),
            "kind": self.kind,
            "dtype": self.spec.dtype,
            "shape": list(self.spec.shape),
            "elements": self.spec.numel,
            "changed": self.changed,
            "share": self.changed / self.spec.numel if self.spec.numel else 0.0,
            "largest_change": finite(some.largest) if some else None,
            "mean_change": finite(some.mean) if some else None,
            "change_norm": finite(some.change_norm) if some else None,
            "norm_before": finite(self.norm_before),
            "norm_after": finite(self.norm_after),
            "relative_norm": finite(self.relative),
            "cosine": finite(some.cosine) if some else None,
            "first_index": None if first is None else unravel(first, self.spec.shape),
            "not_finite": some.not_finite if some else 0,
            "became_not_finite": some.lost if some else 0,
            "effective_rank": self.rank,
            "effective_rank_note": self.rank_note,
        }


class Memo:
    """Measures by what they were taken of: two digests, so they hold for ever. For any thread."""

    def __init__(self, most: int = _MOST_KEPT) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[Any, ...], TensorDiff] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[Any, ...]) -> TensorDiff | None:
        """What is kept under a key of `key_of`."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: tuple[Any, ...], value: TensorDiff) -> None:
        """Keep a measure; the one that was not asked for the longest goes when there are many."""
        with self._lock:
            self._kept[key] = value
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)


def measure(
    name: str,
    before: tuple[TensorSpec, Tensor] | None,
    after: tuple[TensorSpec, Tensor] | None,
    which: Which,
) -> TensorDiff:
    """How one tensor became the other; None where the state has none."""
    if before is None or after is None or before[0] != after[0]:
        spec = (after or before or (None,))[0]
        assert spec is not None, "a tensor that neither state has"
        kind: Kind = "added" if before is None else "removed" if after is None else "replaced"
        norms = [None if side is None else _norm(*side) for side in (before, after)]
        return TensorDiff(name, kind, spec, spec.numel, None, norms[0], norms[1])
    spec = after[0]
    old, new = lanes(before[1], name), lanes(after[1], name)
    found = numbers.compare(spec, old, new)
    rank, note = effective_rank(spec, old, new, which)
    return TensorDiff(
        name, "changed", spec, found.changed, found, found.norm_before, found.norm_after, rank, note
    )


def unravel(index: int, shape: tuple[int, ...]) -> list[int]:
    """A flat index in C order as one of each dimension."""
    each = []
    for size in reversed(shape):
        index, at = divmod(index, size)
        each.append(at)
    return each[::-1]


def _norm(spec: TensorSpec, tensor: Tensor) -> float:
    return numbers.norm(spec, lanes(tensor, spec.name))


def finite(value: float | None) -> float | None:
    """A number that JSON can say; None for one that it cannot."""
    return value if value is not None and math.isfinite(value) else None
