"""How large the changes are that one event made: its elements by the size of their change."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from weightledger.ledger.debug.numbers import values
from weightledger.ledger.events import Event
from weightledger.ledger.history.reader import History
from weightledger.ledger.tensors.lanes import lanes

MOST_ELEMENTS = 1 << 21
"""Elements of the tensors that an event touched, at most: more are not read for a picture."""

PER_DECADE = 2  # steps of a histogram in a power of ten


@dataclass(frozen=True, slots=True)
class HistogramBin:
    """How many elements changed by at least `least` and less than `most`."""

    least: float
    most: float
    elements: int


def spread(history: History, event: Event) -> list[HistogramBin]:
    """The changes of one event by their size, the smallest first; what became or was not finite
    is left out. Empty for an event that changed no numbers, or more of them than are read."""
    if event.parent is None or event.node != event.seq:
        return []
    old, new = history.digests(event.parent), history.digests(event.node)
    names = sorted(
        name
        for name in {change.name for change in event.changes}
        if name in old.specs and old.specs[name] == new.specs.get(name)
    )
    if not names or sum(old.specs[name].numel for name in names) > MOST_ELEMENTS:
        return []
    before = history.tensors(event.parent, old.value, names)
    after = history.tensors(event.node, new.value, names)
    counts: Counter[int] = Counter()
    for name in names:
        spec = old.specs[name]
        with np.errstate(all="ignore"):
            sizes = np.abs(values(spec, lanes(after[name])) - values(spec, lanes(before[name])))
        sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
        steps, many = np.unique(np.floor(PER_DECADE * np.log10(sizes)), return_counts=True)
        for step, count in zip(steps, many, strict=True):
            counts[int(step)] += int(count)
    if not counts:
        return []
    return [
        HistogramBin(_edge(step), _edge(step + 1), counts[step])
        for step in range(min(counts), max(counts) + 1)
    ]


def _edge(step: int) -> float:
    return math.pow(10.0, step / PER_DECADE)
