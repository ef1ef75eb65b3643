"""What states were like while they served: values by state and metric, to compare later ones with.

The newest values of the last few states are kept in memory. Of states from before this process
started, what is stored stands in: as many values as a sketch can tell, each within 1 %.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from weightledger.ledger.monitoring.deciding.comparisons import PAIRS
from weightledger.ledger.monitoring.deciding.wagers import Array
from weightledger.ledger.monitoring.rollups import MetricsReader, Where, merged
from weightledger.ledger.monitoring.samples import Inferences, Source

_STATES = 32
"""States whose values are kept; the one that later ones are compared with stays anyway."""

Values = dict[str, Array]


def values_of(inferences: Inferences) -> Values:
    """The values of inferences by metric, in order.

    `throughput` is here how much one request got done in a second of serving: how many requests
    came says nothing about the model.
    """
    ok = inferences.ok
    good = inferences.where(ok)  # how soon one failed is not how fast the model is
    return {
        "latency_ms": good.latency_ms,
        "throughput": good.items_per_second,
        "failed": (~ok).astype(np.float64),
    }


class References:
    """Values by node of the tree of states; used by one thread at a time."""

    def __init__(self, reader: MetricsReader | None = None) -> None:
        self._reader = reader
        self._kept: OrderedDict[int, Values] = OrderedDict()

    def add(self, node: int, values: Mapping[str, Array]) -> None:
        """Remember values of a state; those of others are forgotten after a while."""
        state = self._kept.setdefault(node, {})
        self._kept.move_to_end(node)
        for metric, some in values.items():
            if len(some):
                known = state.get(metric, np.empty(0))
                state[metric] = np.concatenate((known, some))[-PAIRS:]

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
            if values is not None:
                known[metric] = values
            elif (stored := self._stored(metric, seqs)) is not None:
                known[metric] = stored
        return known

    def _stored(self, metric: str, seqs: Collection[int]) -> Array | None:
        if self._reader is None or not seqs or metric == "throughput":
            return None  # what is stored under that name is how many requests came
        sources: Sequence[Source] = ("pushed",) if metric == "accuracy" else ("engine",)
        where = Where([metric], sources, min_seq=min(seqs), max_seq=max(seqs), own=True)
        # Between two times that a state was live others were, such as one that was rolled back to
        # it; and where neighbours share a rollup, it is not known which values are whose.
        rollup = merged(
            one
            for one in self._reader.rollups(where)
            if one.first_seq == one.last_seq and one.first_seq in seqs
        )
        return None if rollup is None else rollup.values(PAIRS)
