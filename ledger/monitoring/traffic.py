"""What the last minute's inferences took, by the state they ran on.

Kept in steps of the collecting thread and not one by one, so that asking costs the same at any
rate of requests.
"""

from collections import deque
from dataclasses import dataclass

WINDOW_S = 60.0


@dataclass(slots=True)
class _Step:
    """What ended between two looks, at one seq."""

    at: float
    seq: int
    count: int
    latency_ms: float


class Traffic:
    """Not safe to use from several threads: the collector's lock is around it."""

    def __init__(self, now: float) -> None:
        self._steps: deque[_Step] = deque()
        self._began = now
        self._seq: int | None = None

    def add(self, seq: int, count: int, latency_ms: float, now: float) -> None:
        """Count what ended since the last call, with the sum of its latencies; `now` is a monotonic
        time in seconds."""
        if count:
            self._steps.append(_Step(now, seq, count, latency_ms))
        while self._steps and now - self._steps[0].at > WINDOW_S:
            self._steps.popleft()

    def shown(self, seq: int, now: float) -> None:
        """The state of that seq is live from now on."""
        self._seq, self._began = seq, now

    def metrics(self, seq: int, now: float) -> dict[str, float]:
        """`latency_ms` (mean) and `throughput` (inferences a second) of one state in the last
        minute; empty where it answered nobody."""
        steps = [step for step in self._steps if step.seq == seq and now - step.at <= WINDOW_S]
        if not steps:
            return {}
        count = sum(step.count for step in steps)
        began = self._began if self._seq in (seq, None) else steps[0].at
        return {
            "latency_ms": sum(step.latency_ms for step in steps) / count,
            "throughput": count / max(now - max(began, now - WINDOW_S), 1e-3),
        }
