"""What states were like while they served: values by state and metric, to compare later ones with.

The newest values of the last few states are kept in memory. Of states from before this process
started, what is stored stands in: as many values as a sketch can tell, each within 1 %.
"""

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from weightledger.ledger.monitoring.deciding.comparisons import PAIRS
from weightledger.ledger.monitoring.deciding.wagers import Array
from weightledger.ledger.monitoring.rollups import MetricsReader, Where
from weightledger.ledger.monitoring.samples import Inference, Sample, Source

_STATES = 32
"""States whose values are kept; the one that later ones are compared with stays anyway."""

Values = dict[str, list[float]]


def values_of(inferences: Iterable[Inference]) -> Values:
    """The values of inferences by metric, in order.

    `throughput` is here how much one request got done in a second of serving: how many requests
    came says nothing about the model.
    """
    values: Values = {"latency_ms": [], "throughput": [], "failed": []}
    for one in inferences:
        values["failed"].append(float(one.outcome != "ok"))
        if one.outcome != "ok":
            continue  # how soon it failed is not how fast the model is
        values["latency_ms"].append(one.latency_ms)
        values["throughput"].append(1000 * (one.items or 1) / max(one.latency_ms, 1e-6))
    return values


class References:
    """Values by node of the tree of states; used by one thread at a time."""

    def __init__(self, reader: MetricsReader | None = None) -> None:
        self._reader = reader
        self._kept: OrderedDict[int, dict[str, deque[float]]] = OrderedDict()

    def add(self, node: int, values: Mapping[str, Sequence[float]]) -> None:
        """Remember values of a state; those of others are forgotten after a while."""
        state = self._kept.setdefault(node, {})
        self._kept.move_to_end(node)
        for metric, some in values.items():
            if some:
                state.setdefault(metric, deque(maxlen=PAIRS)).extend(some)

    def add_samples(self, node: int, samples: Iterable[Sample]) -> None:
        """Remember single values of a state."""
        for one in samples:
            self.add(node, {one.metric: [one.value]})

    def forget_but(self, kept: Collection[int]) -> None:
        """Drop the oldest states beyond the limit, but for these."""
        for node in list(self._kept)[: max(0, len(self._kept) - _STATES)]:
            if node not in kept:
                del self._kept[node]

    def count(self, node: int, metric: str) -> int:
        """How many values of a metric are known of a state."""
        return len(self._kept.get(node, {}).get(metric, ()))

    def of(self, node: int, metrics: Iterable[str], seqs: Collection[int]) -> dict[str, Array]:
        """What is known of a state that was live at `seqs`, by metric; not measured is absent.

        StorageError when the database does not answer.
        """
        state = self._kept.get(node, {})
        known = {}
        for metric in metrics:
            values = state.get(metric)
            if values:
                known[metric] = np.array(values)
            elif (stored := self._stored(metric, seqs)) is not None:
                known[metric] = stored
        return known

    def _stored(self, metric: str, seqs: Collection[int]) -> Array | None:
        if self._reader is None or not seqs or metric == "throughput":
            return None  # what is stored under that name is how many requests came
        sources: Sequence[Source] = ("pushed",) if metric == "accuracy" else ("engine",)
        where = Where(sources=sources, min_seq=min(seqs), max_seq=max(seqs))
        rollup = self._reader.summary(metric, where)
        if rollup is None:
            return None
        n = min(rollup.count, PAIRS)
        if metric == "failed":
            return (np.arange(n) < round(n * rollup.mean)).astype(np.float64)
        return np.array([rollup.quantile((i + 0.5) / n) for i in range(n)])
