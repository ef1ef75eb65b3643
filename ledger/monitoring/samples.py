"""What is measured: finished inferences, and single values that something else has measured.

Each says at which seq it was observed: that of the last state change, as in `X-Weights-Seq`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Source = Literal["engine", "server", "evaluator", "pushed"]
"""Who measured: an engine in this process, a driven server's own figures, an evaluator, or somebody
outside."""

SOURCES: tuple[Source, ...] = ("engine", "server", "evaluator", "pushed")

Outcome = Literal["ok", "failed", "not_finite"]
"""`failed`: the model raised. `not_finite`: it answered with NaN or infinities."""


class Inference(NamedTuple):
    """One finished request to an engine of this process.

    `at_us` is when it ended, in microseconds since 1970. `latency_ms` is how long the model held
    it, `queue_ms` how long it waited for its turn before that, `items` how many rows, texts or
    tokens it was about. Requests with the same `unit` came with the same key.
    """

    seq: int
    at_us: int
    latency_ms: float
    outcome: Outcome = "ok"
    queue_ms: float | None = None
    items: int | None = None
    unit: int | None = None


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
    """One value of one metric (`metrics.METRICS`)."""

    metric: str
    value: float
    at_us: int
    seq: int
    source: Source


Listener = Callable[[Sequence[Inference]], None]
"""Is told finished inferences in the order they ended, on the collecting thread, a few times a
second; what it raises is logged and keeps nobody else from being told."""
