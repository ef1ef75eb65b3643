"""What is measured: finished inferences, and single values that something else has measured.

Each says at which seq it was observed: that of the last state change, as in `X-Weights-Seq`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Source = Literal["engine", "server", "evaluator", "pushed"]
"""Who measured: an engine in this process, a driven server's own figures, an evaluator, or somebody
outside."""

SOURCES: tuple[Source, ...] = ("engine", "server", "evaluator", "pushed")

Outcome = Literal["ok", "failed", "not_finite"]
"""`failed`: the model raised. `not_finite`: it answered with NaN or infinities."""

OUTCOMES: tuple[Outcome, ...] = ("ok", "failed", "not_finite")
"""Their codes are their places."""

NOT_SAID = -1
"""Stands for None among the items and units of many."""


class Inference(NamedTuple):
    """One finished request to an engine of this process.

    `latency_ms` is how long the model held it, `queue_ms` how long it waited for its turn before
    that, `items` how many rows, texts or tokens it was about. Requests with the same `unit` came
    with the same key.
    """

    seq: int
    latency_ms: float
    outcome: Outcome = "ok"
    queue_ms: float | None = None
    items: int | None = None
    unit: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Inferences:
    """Finished requests in the order they ended, column by column, each [n].

    `outcome` are the places in `OUTCOMES`; a `queue_ms` is NaN, an `items` or `unit` is NOT_SAID
    where it was not said. `at_us` is when they were taken in, in microseconds since 1970, soon
    after they ended.
    """

    at_us: int
    seq: npt.NDArray[np.int64]
    latency_ms: npt.NDArray[np.float64]
    outcome: npt.NDArray[np.uint8]
    queue_ms: npt.NDArray[np.float64]
    items: npt.NDArray[np.int64]
    unit: npt.NDArray[np.int64]

    @classmethod
    def of(cls, told: Iterable[Inference], at_us: int = 0) -> "Inferences":
        """Single ones put together."""
        listed = list(told)
        return cls(
            at_us,
            np.array([one.seq for one in listed], np.int64),
            np.array([one.latency_ms for one in listed], np.float64),
            np.array([OUTCOMES.index(one.outcome) for one in listed], np.uint8),
            np.array([np.nan if one.queue_ms is None else one.queue_ms for one in listed]),
            np.array([NOT_SAID if one.items is None else one.items for one in listed], np.int64),
            np.array([NOT_SAID if one.unit is None else one.unit for one in listed], np.int64),
        )

    def __len__(self) -> int:
        return len(self.seq)

    @property
    def ok(self) -> npt.NDArray[np.bool_]:
        """Which of them were answered well."""
        good: npt.NDArray[np.bool_] = self.outcome == 0
        return good

    @property
    def items_per_second(self) -> npt.NDArray[np.float64]:
        """How much each got done for a second of serving it; one that does not say did one."""
        done: npt.NDArray[np.float64] = np.maximum(self.items, 1) / np.maximum(
            self.latency_ms, 1e-6
        )
        return 1000 * done

    def where(self, wanted: npt.NDArray[np.bool_]) -> "Inferences":
        """Those that are wanted, in order."""
        if wanted.all():
            return self
        columns = [one.name for one in fields(self)[1:]]
        return replace(self, **{name: getattr(self, name)[wanted] for name in columns})

    def by_seq(self) -> Iterator[tuple[int, "Inferences"]]:
        """Those of each state, in the order of their last ones."""
        first = int(self.seq[0])
        if (self.seq == first).all():  # as nearly always
            yield first, self
            return
        seqs, from_end = np.unique(self.seq[::-1], return_index=True)
        for seq in seqs[np.argsort(-from_end)]:
            yield int(seq), self.where(self.seq == seq)


@dataclass(slots=True)
class Measuring:
    """What a request says of itself while it holds a lease.

    `key`: during a trial, all requests of one key meet the same state. `arrived` is the
    `time.perf_counter()` of when it came in, so that it is known how long it waited. `counts`
    False: nothing is measured, as of one that was given up half-way.
    """

    key: str | None = None
    arrived: float | None = None
    items: int | None = None
    outcome: Outcome = "ok"
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one metric (`metrics.METRICS`); `replica` is who served, where that was said.

    `supposed`: nobody said of which state it is, and that of the live one was taken.
    """

    metric: str
    value: float
    at_us: int
    seq: int
    source: Source
    replica: str | None = None
    supposed: bool = False


Listener = Callable[[Inferences], None]
"""Is told finished inferences in the order they ended, on the collecting thread, a few times a
second; what it raises is logged and keeps nobody else from being told."""
