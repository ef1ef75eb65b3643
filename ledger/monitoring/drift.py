"""Drift: streams of values that are no longer what they were, whoever changed.

River's detectors look at what is measured or pushed: inputs (their sizes, or a figure of theirs
that is pushed), scores, latencies. What they notice is an alert and an `observed` event, and never
a reason for a rollback: that inputs changed says nothing about an update.

Each stream first shows what is usual, then every value counts as the share of those that were
smaller. So it is in [0, 1] whatever its unit and tails are, which the detectors' bounds are for.
"""

import threading
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring.deciding.wagers import Array
from weightledger.ledger.monitoring.metrics import METRICS, is_known
from weightledger.ledger.monitoring.samples import Inferences, Sample

DRIFT = "drift"
"""The verdict of a stream that is no longer what it was."""

DETECTORS = ("adwin", "page-hinkley")

USUAL = 200
"""Values that show what is usual, before any is looked at."""

MOST_AT_A_TIME = 50
"""Of the requests between two looks, that are looked at: evenly spaced."""

QUIET_S = 600.0
"""After an alert a stream gives no other one for so long."""

_BY_REQUEST = ("latency_ms", "queue_ms", "items", "failed")


class Detector(Protocol):
    """One of river's."""

    @property
    def drift_detected(self) -> bool:
        """Whether the last value showed it."""

    def update(self, x: float) -> Any:
        """Take a value in."""


def detector_of(name: str) -> Callable[[], Detector]:
    """What makes detectors of a name; InvalidRequest for one there is none of, or without river."""
    if name not in DETECTORS:
        raise InvalidRequest(
            f"drift_detector must be {', '.join(DETECTORS)}, got {name!r}", param="drift_detector"
        )
    try:
        from river import drift  # imports scikit-learn, for seconds
    except ImportError:
        raise InvalidRequest(
            "drift detection wants river: pip install 'weightledger[monitoring]'",
            param="drift_metrics",
        ) from None
    makers: dict[str, Callable[[], Detector]] = {
        "adwin": drift.ADWIN,
        "page-hinkley": drift.PageHinkley,
    }
    return makers[name]


def require_streams(metrics: Sequence[str]) -> None:
    """Raise InvalidRequest for a metric that there is not."""
    for metric in metrics:
        if not is_known(metric):
            raise InvalidRequest(
                f"drift_metrics may be {', '.join(METRICS)}, or a name of your own such as"
                f" custom.ndcg, got {metric!r}",
                param="drift_metrics",
            )


@dataclass(frozen=True, slots=True)
class Shift:
    """What a detector noticed: the means of the usual values and of the last, and how many came
    since the former."""

    metric: str
    detector: str
    before: float
    after: float
    values: int

    def __str__(self) -> str:
        return (
            f"{self.metric} drifted from {self.before:.6g} to {self.after:.6g}"
            f" ({self.detector}, after {self.values} values)"
        )


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """A stream as people see it; `usual` is None while what is usual is still being learnt.

    `usual` and `recent` are means, `values` those looked at, `drifts` how often it drifted and
    `last_at` when it did last, in seconds since 1970.
    """

    metric: str
    detector: str
    values: int
    usual: float | None
    recent: float | None
    drifts: int
    last_at: float | None


class MetricStream:
    """The values of one metric. Used by one thread at a time."""

    def __init__(self, metric: str, detector: str, make: Callable[[], Detector]) -> None:
        self.metric = metric
        self.detector = detector
        self.values = 0
        self.drifts = 0
        self.last_at: float | None = None
        self._make = make
        self._begin()

    def _begin(self) -> None:
        self._detector = self._make()
        self._usual: list[float] = []
        self._ordered: list[float] = []
        self._recent: deque[float] = deque(maxlen=USUAL)
        self._since = 0

    def take(self, values: Array) -> Shift | None:
        """Take values in, [n], in order; what was noticed, after which the usual is learnt anew."""
        shift = None
        for value in values.tolist():
            self.values += 1
            if not self._ordered:
                self._usual.append(value)
                if len(self._usual) == USUAL:
                    self._ordered = sorted(self._usual)
                continue
            self._since += 1
            self._recent.append(value)
            below = bisect_left(self._ordered, value) + bisect_right(self._ordered, value)
            self._detector.update(below / (2 * USUAL))
            if self._detector.drift_detected:
                after = float(np.mean(self._recent))
                before = float(np.mean(self._ordered))
                shift = Shift(self.metric, self.detector, before, after, self._since)
                self.drifts += 1
                self.last_at = time.time()
                self._begin()
        return shift

    def status(self) -> StreamStatus:
        """Where it stands."""
        usual = float(np.mean(self._ordered)) if self._ordered else None
        recent = float(np.mean(self._recent)) if self._recent else None
        return StreamStatus(
            self.metric, self.detector, self.values, usual, recent, self.drifts, self.last_at
        )


class Drift:
    """Streams of some metrics; `tell` hears of shifts, at most one a stream in `QUIET_S`."""

    def __init__(
        self,
        metrics: Sequence[str],
        detector: str,
        tell: Callable[[Shift], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require_streams(metrics)
        make = detector_of(detector)
        self._streams = {metric: MetricStream(metric, detector, make) for metric in metrics}
        self._tell = tell
        self._clock = clock
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()

    def inferences(self, told: Inferences) -> None:
        """Take in finished requests, in order."""
        ok = told.ok
        for metric in _BY_REQUEST:
            if metric not in self._streams:
                continue
            if metric == "failed":
                values = (~ok).astype(np.float64)
            else:
                values = getattr(told, metric)[ok].astype(np.float64)
                values = values[values >= 0]  # what was not said is NaN, or below
            step = -(-len(values) // MOST_AT_A_TIME) or 1
            self._take(metric, values[::step])

    def samples(self, told: Sequence[Sample]) -> None:
        """Take in single values: gauges, scores, what was pushed."""
        for metric in {one.metric for one in told} & self._streams.keys():
            self._take(metric, np.array([one.value for one in told if one.metric == metric]))

    def status(self) -> list[StreamStatus]:
        """Where every stream stands."""
        with self._lock:
            return [stream.status() for stream in self._streams.values()]

    def _take(self, metric: str, values: Array) -> None:
        with self._lock:
            shift = self._streams[metric].take(values)
        if shift is None:
            return
        now = self._clock()
        if metric not in self._told or now - self._told[metric] >= QUIET_S:
            self._told[metric] = now
            self._tell(shift)
